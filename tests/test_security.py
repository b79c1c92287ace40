"""What SECURITY.md promises of files from strangers, a test for each promise (media: `test_hostile.py` too)."""

import ast
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import perceiver_vl
from perceiver_vl import MediaError, PerceiverVLError, PerceiverVLForRetrieval, UsageError
from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.shards.reading import ShardedDataset
from perceiver_vl.data.shards.writing import write_shards
from perceiver_vl.data.synthetic.writing import write_world
from perceiver_vl.media.decode import load_frames
from perceiver_vl.models.loading import load_retriever
from perceiver_vl.models.perceiver_vl.convert import convert
from perceiver_vl.search import Searcher, build_index
from perceiver_vl.search.query_export import write_query_graph
from perceiver_vl.training import train
from perceiver_vl.training.checkpoints import seal
from perceiver_vl.training.recipe import read_recipe
from tiny import tiny_recipe

SOURCES = sorted(Path(perceiver_vl.__file__).parent.rglob("*.py"))


class Bomb:
    """What unpickles into a call that writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """What is there once a stranger's code has run; it must never be."""
    yield tmp_path / "mark"
    assert not (tmp_path / "mark").exists(), "a stranger's code has run"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Where anybody wanted to connect to."""
    asked: list[Any] = []

    def refuse(*where: Any, **_: Any) -> Any:
        asked.append(where)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, the run of it, and its checkpoints; not to be changed."""
    folder = tmp_path_factory.mktemp("security")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(folder / "run")))
    train(read_recipe(folder / "recipe.yaml"), progress=False)
    return folder


@pytest.fixture
def model(run: Path, tmp_path: Path) -> Path:
    """A model folder to be spoilt."""
    return Path(shutil.copytree(run / "run", tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")))


# --- No file is run: what is written in the sources -----------------------------------------------------------------


def offences(source: str) -> list[str]:
    """Calls that could run what a file says, as `name:line`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        plain = called.rpartition(".")[2]
        bad = called in {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path"}
        bad |= plain == "Unpickler" or called.split(".")[0] in {"joblib", "dill", "cloudpickle", "marshal", "shelve"}
        bad |= called.startswith("pickle.") and plain in {"load", "loads"}
        bad |= called == "torch.load" and given.get("weights_only") != "True"
        bad |= called.startswith("yaml.") and plain in {"unsafe_load", "full_load", "unsafe_load_all", "full_load_all"}
        loader = given.get("Loader", ast.unparse(node.args[1]) if len(node.args) > 1 else "")
        bad |= called in {"yaml.load", "yaml.load_all"} and loader not in {"RecipeLoader", "yaml.SafeLoader"}
        bad |= given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False"
        bad |= given.get("trust_remote_code", "False") != "False" or given.get("weights_only", "True") != "True"
        found += [f"{called}:{node.lineno}"] * bad
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_module_has_a_call_that_runs_what_a_file_says(path: Path) -> None:
    assert offences(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "yaml.load(text, yaml.Loader)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "exec(text)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, weights_only=False)",
        "subprocess.run(words, shell=True)",
    ],
)
def test_such_a_call_would_be_found(source: str) -> None:
    assert len(offences(f"def innocent():\n    return {source}")) == 1


def test_the_loader_of_recipes_is_a_safe_one() -> None:
    """`RecipeLoader`, which `offences` lets pass."""
    (tree,) = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES if path.name == "recipe_parsing.py"]
    (loader,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "RecipeLoader"]
    assert [ast.unparse(base) for base in loader.bases] == ["yaml.SafeLoader"]


# --- Checkpoints and model folders ----------------------------------------------------------------------------------


def test_the_bomb_of_these_tests_goes_off_where_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_checkpoint_that_is_resumed_runs_nothing(name: str, run: Path, tmp_path: Path, mark: Path) -> None:
    """Not even one whose checksums are right. transformers' Trainer reads all but the last with `weights_only`; that
    nobody writes or reads.
    """
    output = Path(shutil.copytree(run / "run", tmp_path / "run"))
    (output / "metrics.json").unlink()
    shutil.rmtree(output / "checkpoints" / "checkpoint-6")
    checkpoint = output / "checkpoints" / "checkpoint-4"
    is_read = name != "training_args.bin"
    assert (checkpoint / name).exists() == is_read
    torch.save(Bomb(mark), checkpoint / name)
    seal(checkpoint)
    recipe = read_recipe(run / "recipe.yaml", [f"output={output}"])
    if is_read:
        with pytest.raises(PerceiverVLError, match=rf"^[^\n]+checkpoint-4/{name}: holds more than tensors[^\n]+$"):
            train(recipe, resume=True, progress=False)
    else:
        assert train(recipe, resume=True, progress=False).steps == 6


def test_a_checkpoint_names_no_file_elsewhere(run: Path, tmp_path: Path) -> None:
    """As the best model, which is loaded at the end."""
    output = Path(shutil.copytree(run / "run", tmp_path / "run"))
    (output / "metrics.json").unlink()
    elsewhere = Path(shutil.copytree(run / "run", tmp_path / "elsewhere"))
    checkpoint = output / "checkpoints" / "checkpoint-6"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state |= {"best_model_checkpoint": str(elsewhere), "best_global_step": 5}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    seal(checkpoint)
    (elsewhere / "model.safetensors").write_bytes(b"not to be read")
    words = [f"output={output}", "training.load_best_model_at_end=true", "training.eval_strategy=steps"]
    words += ["training.metric_for_best_model=multi_r1", "training.eval_steps=2"]
    words += ["data.validation={split: validation, world: {clips: 4, size: 16}}"]
    assert train(read_recipe(run / "recipe.yaml", words), resume=True, progress=False).steps == 6


@pytest.mark.parametrize("beside", [True, False], ids=["beside safetensors", "alone"])
def test_pickled_weights_of_a_model_folder_are_not_read(beside: bool, model: Path, mark: Path) -> None:
    torch.save(Bomb(mark), model / "pytorch_model.bin")
    if beside:
        load_retriever(model)
        return
    (model / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no weights in it"):
        load_retriever(model)


def test_a_checkpoint_of_others_is_not_unpickled(tmp_path: Path, mark: Path) -> None:
    torch.save({"state_dict": {"a": Bomb(mark)}}, tmp_path / "theirs.ckpt")
    with pytest.raises(PerceiverVLError, match=r"holds more than tensors[^\n]*never run"):
        convert(tmp_path / "theirs.ckpt", tmp_path / "out")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_code_in_a_model_folder_is_neither_run_nor_asked_about(
    name: str, model: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[Any]
) -> None:
    monkeypatch.setattr("builtins.input", lambda _="": pytest.fail("somebody was asked whether to run it"))
    (model / "theirs.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Theirs:\n    pass\n")
    kinds = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor")
    maps: dict[str, Any] = dict.fromkeys(kinds, "theirs.Theirs") | {"AutoTokenizer": ["theirs.Theirs"] * 2}
    settings = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps(settings | {"auto_map": maps}))
    model_, _ = load_retriever(model)
    assert isinstance(model_, PerceiverVLForRetrieval)

    (model / name).write_text(json.dumps(settings | {"auto_map": maps, "tokenizer_class": "Theirs"}))
    if name == "tokenizer_config.json":  # a class that nobody here has
        with pytest.raises(PerceiverVLError, match=r"^[^\n]*cannot be loaded[^\n]*$"):
            load_retriever(model)
    assert no_network == []


# --- Recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["apply:os.getcwd []", "name:os.getcwd", "module:os", "new:os.mkdir ['x']"])
def test_a_recipe_with_an_object_of_python_is_refused_in_one_line(tag: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"output: !!python/object/{tag}\n" if "apply" in tag or "new" in tag else f"a: !!python/{tag}\n")
    with pytest.raises(UsageError, match=r"^recipe [^\n]+recipe.yaml: not YAML[^\n]+$"):
        read_recipe(file)


@pytest.mark.parametrize("place", ["model.a", "training.a", "tokenizer", "data.augmentation"])
def test_a_recipe_names_no_code(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even that of an installed package, which jsonargparse imports and calls for a mapping with `class_path`."""
    mark, name = tmp_path / "mark", f"theirs_{place.replace('.', '_')}"
    (tmp_path / f"{name}.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Theirs:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(tmp_path / "run")))
    with pytest.raises(UsageError, match=r"^[^\n]+$"):
        read_recipe(tmp_path / "recipe.yaml", [f"{place}={{class_path: {name}.Theirs}}"])
    assert not mark.exists()
    if place in ("tokenizer", "data.augmentation"):
        with pytest.raises(UsageError, match=r"^[^\n]+need a mapping$"):
            read_recipe(tmp_path / "recipe.yaml", [f"{place}={name}"])
        assert not mark.exists()


# --- Names in metadata, archives and indexes ------------------------------------------------------------------------

ELSEWHERE = ["../secret.mp4", "a/../../secret.mp4", "/etc/hostname", "..\\secret.mp4", "C:\\secret.mp4"]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_in_metadata_does_not_leave_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_world(folder, clips=4, num_frames=2, size=16, held_out=1)
    shutil.copy(next((folder / "clips").rglob("*.mp4")), tmp_path / "secret.mp4")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "a"}) + "\n")
    with pytest.raises(UsageError, match=r"leads out of the folder|an absolute path"):
        read_folder(folder)


def test_a_name_in_a_manifest_of_shards_does_not_leave_its_folder(tmp_path: Path) -> None:
    """Nor is anything unpacked: what a sample is called is looked up in the index, and read within its shard."""
    write_world(tmp_path / "world", clips=6, num_frames=2, size=16, held_out=1)
    write_shards(read_folder(tmp_path / "world"), tmp_path / "shards", samples_per_shard=2, workers=1)
    manifest = tmp_path / "shards" / "manifest.json"
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "shards" / "train-000000.tar", tmp_path / "elsewhere")
    text = manifest.read_text()
    for name in ("../elsewhere/train-000000.tar", f"{tmp_path}/elsewhere/train-000000.tar"):
        manifest.write_text(text.replace("train-000000.tar", name))
        with pytest.raises(PerceiverVLError, match="is not the name of a shard"):
            ShardedDataset(str(tmp_path / "shards"), (16, 16), "train")


# --- Media ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:9/a.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '/etc/hostname'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
    ],
    ids=["playlist", "concat", "session"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".txt", ".sdp"])
def test_media_lead_to_no_other_file_and_no_network(
    content: str, suffix: str, tmp_path: Path, no_network: list[Any]
) -> None:
    (tmp_path / f"a{suffix}").write_text(content)
    with pytest.raises(MediaError, match="not a media file"):
        load_frames(tmp_path / f"a{suffix}", 1)
    assert no_network == []


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/a.mp4", "concat:a.mp4|a.mp4", "pipe:0", "data:video/mp4;base64,"])
def test_a_protocol_is_a_name_like_any_other(name: str) -> None:
    with pytest.raises(MediaError, match="no such file"):
        load_frames(name, 1)


# --- The network ----------------------------------------------------------------------------------------------------


def test_nothing_is_fetched_unless_a_hub_name_is_given(
    model: Path, tmp_path: Path, no_network: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training from a model folder, indexing and searching."""
    write_world(tmp_path / "world", clips=8, num_frames=2, size=16, held_out=1)
    recipe = tiny_recipe(tmp_path / "again", initialise={"model": str(model)}, training={"max_steps": 1})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"model": {}}))
    train(read_recipe(tmp_path / "recipe.yaml"), progress=False)
    build_index(tmp_path / "again", tmp_path / "world" / "clips", tmp_path / "index")
    assert Searcher(tmp_path / "index").search("a red circle", top_k=1).hits
    assert no_network == []


def test_nothing_is_reported_to_the_makers_of_onnxruntime(tmp_path: Path) -> None:
    """Which otherwise gives the machine a number, in the user's cache."""
    pytest.importorskip("onnxruntime")
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = "from perceiver_vl.utils.onnx import import_onnxruntime as load; load().SessionOptions()"
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], env=environment | home, check=True)
    assert not list(tmp_path.iterdir())


def test_graphs_are_taken_from_the_cache_alone(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = tmp_path / "index"
    write_world(tmp_path / "world", clips=4, num_frames=2, size=16, held_out=1)
    build_index(model, tmp_path / "world" / "clips", index)
    assert write_query_graph(index) is None
    [graph] = (tmp_path / "cache").rglob("*.zip")
    whole = Searcher(index, light=True).queries
    for folder in (model, index):
        shutil.copy(graph, folder)
    graph.unlink()
    assert type(Searcher(index, light=True).queries) is not type(whole)


def test_the_files_of_an_index_are_not_unpickled(tmp_path: Path, model: Path, mark: Path) -> None:
    write_world(tmp_path / "world", clips=4, num_frames=2, size=16, held_out=1)
    build_index(model, tmp_path / "world" / "clips", tmp_path / "index")
    bomb = pickle.dumps(Bomb(mark))
    table = tmp_path / "index" / "clips.lance"
    newest = min(table.glob("_versions/*.manifest"))  # their names count down
    files = [newest, *table.glob("data/*.lance")]
    assert len(files) >= 2, list(table.rglob("*"))
    for path in files:
        before = path.read_bytes()
        path.write_bytes(bomb)
        with pytest.raises(PerceiverVLError, match=r"^[^\n]+$"):
            Searcher(tmp_path / "index").search("a red circle")
        path.write_bytes(before)
