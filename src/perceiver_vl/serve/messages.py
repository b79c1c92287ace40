"""What is asked and answered over HTTP. `/openapi.json` is made of these, and requests are read by them.

Seconds are from the first frame of a video. `id`: 32 hexadecimal digits that tell a file's content, whatever its name.
"""

from dataclasses import dataclass
from typing import Any, Literal

from perceiver_vl.search.moments import CurvePoint
from perceiver_vl.serve.schema import described

MOST_TEXT = 2000
MOST_HITS = 200
MOST_QUERIES = 64


@dataclass(frozen=True)
class Example:
    """A clip or picture to look for the like of: of the index, or uploaded."""

    id: str = described("id of a clip of the index, or of an upload", most=64)
    weight: float = described("negative: unlike it", 1.0, least=-10, most=10)


@dataclass(frozen=True)
class SearchRequest:
    """What to look for. Filters can be typed into the query, too."""

    query: str = described(
        'words; with -words to leave out, "several words"^2 for weights, and filters such as folder:trip type:video',
        "",
        most=MOST_TEXT,
        example="a red circle moves left -star type:video",
    )
    top: int = described("hits wanted", 10, least=1, most=MOST_HITS)
    like: list[Example] = described("examples", [], most=16)
    index: str | None = described("only this index, by its name", None, most=4000)
    folder: str | None = described("only in this folder", None, most=4000)
    type: Literal["video", "image"] | None = described("only these", None)
    after: str | None = described("recorded on this day or time or later (ISO 8601)", None, most=40)
    before: str | None = described("recorded before this day or time", None, most=40)
    longer: float | None = described("at least so many seconds", None, least=0)
    shorter: float | None = described("at most so many seconds", None, least=0)
    caption: str | None = described("a caption says this", None, most=MOST_TEXT)
    sort: Literal["relevance", "date"] = described("order of the hits; by date the newest is first", "relevance")
    group: bool = described("show near-duplicates under the best of them", True)
    alike: float | None = described("cosine from which on clips are near-duplicates", None, least=-1, most=1)
    shortlist: int = described("candidates that are ranked again", 100, least=1, most=2000)
    rerank: Literal["combined", "mixed", "none"] = described("how they are", "combined")


@dataclass(frozen=True)
class MomentsRequest(SearchRequest):
    """What to look for within videos; of an index with segments."""

    per_video: int = described("moments of one video", 3, least=1, most=100)
    min_length: float = described("seconds", 0.0, least=0)
    max_length: float = described("seconds", 60.0, least=0, most=3600)
    always: bool = described("show the best even where they are no better than chance", False)


@dataclass(frozen=True)
class SearchBatch:
    """Several searches at once."""

    requests: list[SearchRequest] = described("searches", least=1, most=MOST_QUERIES)


@dataclass(frozen=True)
class Like:
    """A near-duplicate of a hit."""

    id: str
    file: str
    index: str
    score: float


@dataclass(frozen=True)
class Hit:
    """A clip that was found, or a moment of it, from `start` to `end`. `score` orders the hits, `multi_score` is the
    cosine, `mixed_score` the matching logit.
    """

    rank: int
    id: str
    file: str
    index: str
    kind: str
    score: float
    multi_score: float
    mixed_score: float | None
    start: float | None
    end: float | None
    duration: float | None
    width: int | None
    height: int | None
    created: str | None
    captions: list[str]
    alike: list[Like]


@dataclass(frozen=True)
class Text:
    """A text of the query and its weight."""

    text: str
    weight: float


@dataclass(frozen=True)
class Understood:
    """What a query was taken for."""

    texts: list[Text]
    filters: dict[str, Any]


@dataclass(frozen=True)
class SearchAnswer:
    """Hits, best first. `seconds` by stage, those of `queue` among them; `method`: exact or approximate, then with its
    `recall`; `searched`: clips or segments that the filters keep. `found`: false where the best is no better than
    chance, null where that was never calibrated.
    """

    query: str
    understood: Understood
    hits: list[Hit]
    found: bool | None
    notes: list[str]
    method: str
    recall: float | None
    searched: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class MomentsAnswer(SearchAnswer):
    """The same of moments; `curves`: the relevance of each segment, by the id of the video."""

    curves: dict[str, list[CurvePoint]]
    surprise: float
    threshold: float | None


@dataclass(frozen=True)
class SearchAnswers:
    """In the order of the requests."""

    results: list[SearchAnswer]


@dataclass(frozen=True)
class AskRequest:
    """A question about a clip, or some seconds of it."""

    id: str = described("of a clip of the index, or of an upload", most=64)
    question: str = described("what to ask", least=1, most=MOST_TEXT, example="what colour is the circle?")
    choices: list[str] | None = described("answers to choose from; required of a model without answers", None, most=64)
    top: int = described("answers wanted", 5, least=1, most=100)
    start: float | None = described("look from this second on", None, least=0)
    end: float | None = described("up to this second", None, least=0)
    budget: str | None = described("dials, as in frames=4,latents=16", None, most=200)


@dataclass(frozen=True)
class Answer:
    """One answer, and its probability."""

    answer: str
    score: float


@dataclass(frozen=True)
class AskAnswer:
    """Answers, likeliest first. `cached`: the clip had been read already, for an earlier question; `seconds`: of
    `read`ing it (0 then), of the `answer`, and in the `queue`.
    """

    question: str
    answers: list[Answer]
    cached: bool
    budget: str
    seconds: dict[str, float]


@dataclass(frozen=True)
class EmbedRequest:
    """What to turn into unit vectors: texts, clips of the index, uploads."""

    texts: list[str] = described("texts", [], most=MOST_QUERIES)
    ids: list[str] = described("ids of clips and uploads", [], most=1000)
    encoding: Literal["json", "base64"] = described("lists of numbers, or little-endian float32 as base64", "json")


@dataclass(frozen=True)
class EmbedAnswer:
    """Vectors of `size` numbers, in the order of the request."""

    size: int
    texts: list[list[float] | str]
    ids: list[list[float] | str]


@dataclass(frozen=True)
class EmbeddingsRequest:
    """As OpenAI's `/v1/embeddings`, for texts."""

    input: str | list[str] = described("a text, or several", most=MOST_QUERIES * MOST_TEXT)
    model: str = described("taken, and answered as it is: there is one model", "perceiver-vl", most=200)
    encoding_format: Literal["float", "base64"] = described("numbers, or little-endian float32", "float")
    dimensions: int | None = described("only the model's own number", None)
    user: str | None = described("ignored", None, most=200)


@dataclass(frozen=True)
class Embedding:
    """One vector."""

    object: str
    index: int
    embedding: list[float] | str


@dataclass(frozen=True)
class EmbeddingsAnswer:
    """As OpenAI's."""

    object: str
    data: list[Embedding]
    model: str
    usage: dict[str, int]


@dataclass(frozen=True)
class ClipAnswer:
    """A clip of an index. `plays`: `file` where browsers play it as it is, `stream` where it is converted while it is
    watched, `frames` where nothing but its filmstrip can be shown; null for a picture.
    """

    id: str
    file: str
    files: list[str]
    index: str
    kind: str
    size: int
    duration: float | None
    width: int | None
    height: int | None
    created: str | None
    captions: list[str]
    plays: str | None


@dataclass(frozen=True)
class Looked:
    """Where the model looked: for each frame `seconds` and, row by row, a `grid` of shares of all attention, which
    come to 1 over all frames. Not a proof of anything.
    """

    seconds: list[float]
    rows: int
    columns: int
    grid: list[list[float]]


@dataclass(frozen=True)
class UploadAnswer:
    """An example that was uploaded; the file itself is deleted already."""

    id: str
    kind: str
    duration: float | None
    frames: int
    expires: float


@dataclass(frozen=True)
class Skipped:
    """A file that could not be read, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class IndexState:
    """What an index holds. `bytes`: of the index; `media_bytes`: of the files that it is of."""

    name: str
    media: str
    clips: int
    videos: int
    images: int
    segments: int | None
    hours: float
    bytes: int | None
    media_bytes: int
    skipped: list[Skipped]
    version: int
    budget: str
    segments_of: str | None


@dataclass(frozen=True)
class OperatingPoint:
    """A setting of the budget: what it scores, and what an example costs where it was measured."""

    budget: str
    score: float
    gflops: float
    milliseconds: float


@dataclass(frozen=True)
class Budgets:
    """The settings that are worth choosing, as `bench frontier` measured them."""

    metric: str
    lower_is_better: bool
    data: str
    unit: str
    settings: list[OperatingPoint]


@dataclass(frozen=True)
class ServiceState:
    """All indexes, and what the model can do."""

    version: str
    model: str
    indexes: list[IndexState]
    answers: list[str] | None
    budgets: Budgets | None
    notes: list[str]
    can_index: bool


@dataclass(frozen=True)
class JobRequest:
    """Bring an index up to date with its folder."""

    index: str | None = described("its name; needed where there are several", None, most=4000)


@dataclass(frozen=True)
class Job:
    """An update of an index. `state`: running, done, failed or cancelled; `stage`, `done` and `total` tell how far."""

    id: str
    index: str
    state: str
    stage: str
    done: int
    total: int
    summary: str
    skipped: list[Skipped]
    error: str | None


@dataclass(frozen=True)
class Jobs:
    """The last ones, newest first."""

    jobs: list[Job]


@dataclass(frozen=True)
class Problem:
    """What went wrong (RFC 9457): `detail` is the line that the command line would print."""

    type: str
    title: str
    status: int
    detail: str
    instance: str


@dataclass(frozen=True)
class Health:
    """`status`: live, ready, loading or failing."""

    status: str
    detail: str
