"""Clips in shards: tar files in the WebDataset convention, read by offset, so that any example is one read away.

A folder or URL of shards holds
- `train-000000.tar`, …: uncompressed; each sample is `00000017.mp4`, for a pair `00000017.second.jpg`, and
  `00000017.json` with the records that speak of it;
- `index.parquet`: a row for each record and where its media lie, a row group for each shard, in order;
- `manifest.json`: settings, source, versions; the splits; name, size and SHA-256 of each shard and of the index.

The order of examples is the sampler's affair: nothing is lost to a shuffle buffer, and a resumed run sees what the
uninterrupted one would have seen, with any number of workers and ranks.
"""
