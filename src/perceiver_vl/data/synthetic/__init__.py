"""The generated world: short clips of coloured shapes whose truth is known, to train and test on in minutes.

Captions: `scene` says what is in a clip and where, `captions` says it in words, `render` draws it, `collection` serves
it from memory. Questions: `actions` are what an object can do, `grid` is where objects are, `references` say which one
is meant; `questions`, `statements` and `long` draw what to ask together with what it is about; `tasks` serves these.
`writing` puts either on disk, `official` in the layouts of the benchmarks.
"""
