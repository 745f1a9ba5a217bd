"""Models on Hugging Face: fetched within limits, pushed with their card. The server is a stub."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from tests.zoo import hub_stub
from tests.zoo.hub_stub import COMMIT, Stub

import repzoo
from repzoo.artifact import Artifact
from repzoo.errors import InputError, MissingExtra
from repzoo.measure.record import identity_of
from repzoo.verbs import load_model
from repzoo.zoo import hub

pytest.importorskip("huggingface_hub", reason="the hub extra is not installed")
Run = Callable[..., Any]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    """A server with an empty repository `owner/name`, and a cache of its own."""
    monkeypatch.setenv("REPZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with hub_stub.serve() as stub:
        monkeypatch.setenv("HF_ENDPOINT", stub.address)
        yield stub


def test_names_have_an_owner_a_file_and_a_revision() -> None:
    assert hub.parse("hf:o/n") == hub.HubName("o/n")
    assert hub.parse("hf:o/n.x@v1") == hub.HubName("o/n.x", "", "v1")
    assert hub.parse("hf:o/n/a/b.onnx@refs/pr/1") == hub.HubName(
        "o/n", "a/b.onnx", "refs/pr/1"
    )
    for name in (
        "hf:",
        "hf:n",
        "hf:o/",
        "hf:../n",
        "hf:o/n@",
        "hf:o/n@a b",
        "hf:o n/m",
    ):
        with pytest.raises(InputError, match="expected hf:owner/name"):
            hub.parse(name)


def test_load_pins_the_commit_and_the_history_keeps_it(
    server: Stub, model_file: Path
) -> None:
    server.files["model.onnx"] = model_file.read_bytes()
    model = repzoo.load("hf:owner/name@v1")
    origin = f"hf:owner/name/model.onnx@{COMMIT}"
    own = Artifact.read(model_file)
    assert (model.sha256, model.labels, model.origin) == (
        own.sha256,
        own.labels,
        origin,
    )
    # Nothing else is asked or told, such as what else is installed.
    assert server.requests[0] == "GET /api/models/owner/name/revision/v1"
    assert f"GET /owner/name/resolve/{COMMIT}/model.onnx" in server.requests
    # The branch may move on; what was read does not.
    assert not any("/resolve/v1" in request for request in server.requests)
    assert identity_of(model)["origin"] == origin
    folded = model.then(model.model, repzoo.Step("fold", "0", {"folds": 1}))
    assert folded.steps[-1].settings == {"folds": 1, "origin": origin}
    again = folded.then(model.model, repzoo.Step("quantize", "0", {}))
    assert again.steps[-1].settings == {}


def test_every_command_takes_the_name(
    run: Run, server: Stub, model_file: Path, digits_folder: Path
) -> None:
    server.files["model.onnx"] = model_file.read_bytes()
    image = next(digits_folder.rglob("*.png"))
    here = run("predict", model_file, image, "--json").document
    assert run("predict", "hf:owner/name", image, "--json").document == here
    assert (
        run("info", "hf:owner/name@main", "--json").document["origin"].endswith(COMMIT)
    )
    assert run("count", f"hf:owner/name/model.onnx@{COMMIT}", "-q").code == 0


def test_of_several_models_the_int8_one_is_meant_or_none(
    server: Stub, model_file: Path
) -> None:
    data = model_file.read_bytes()
    server.files = {"a.train.onnx": data, "a.deploy.onnx": data, "a.int8.onnx": data}
    assert hub.fetch("hf:owner/name").file == "a.int8.onnx"
    assert hub.fetch("hf:owner/name/a.train.onnx").file == "a.train.onnx"
    del server.files["a.int8.onnx"]
    assert hub.fetch("hf:owner/name").file == "a.deploy.onnx"
    server.files = {"a.onnx": data, "b.onnx": data}
    with pytest.raises(
        InputError, match=r"several models; say which, such as hf:owner"
    ):
        hub.fetch("hf:owner/name")
    server.files = {"README.md": b""}
    with pytest.raises(InputError, match=r"has no .onnx file; it has README.md"):
        hub.fetch("hf:owner/name")


@pytest.mark.parametrize(
    ("file", "size", "message"),
    [
        ("m.onnx", 2**31 + 1, r"a file of 2,147,483,649 bytes; at most 2,147,483,648"),
        ("m.onnx", None, r"a file of unknown size"),
        ("m.onnx", -1, r"of -1 bytes"),
        ("m.pkl", 3, r"only .onnx, .safetensors, .json, .md files are"),
        ("m.onnx.py", 3, r"which hold no code"),
        ("../../m.onnx", 3, r"its name is no path in a repository"),
        ("a\\..\\m.onnx", 3, r"its name is no path in a repository"),
    ],
)
def test_what_is_too_large_or_of_another_kind_is_not_fetched(
    server: Stub, file: str, size: int | None, message: str
) -> None:
    server.files[file] = b"abc"
    server.sizes[file] = size
    with pytest.raises(InputError, match=message):
        hub.fetch(f"hf:owner/name/{file}")
    assert not any("resolve" in request for request in server.requests)


def test_a_file_of_another_size_than_stated_is_not_used(server: Stub) -> None:
    server.files["m.onnx"] = b"abcdef"
    server.sizes["m.onnx"] = 3
    with pytest.raises(InputError, match="has 6 bytes, and the list of files states 3"):
        hub.fetch("hf:owner/name")
    assert not any(request.startswith("GET /owner") for request in server.requests)


def test_a_hash_that_is_a_path_is_refused(server: Stub, tmp_path: Path) -> None:
    server.files["m.onnx"] = b"abc"
    server.etag = "../../../../escaped"
    with pytest.raises(InputError, match="names no hash"):
        hub.fetch("hf:owner/name")
    assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"id": 3, "sha": "x"}', b"\xff"])
def test_nonsense_of_a_server_is_a_sentence(server: Stub, raw: bytes) -> None:
    server.raw = raw
    with pytest.raises(InputError, match="owner/name"):
        hub.fetch("hf:owner/name")


@pytest.mark.usefixtures("server")
def test_unknown_repositories_and_revisions_are_sentences(run: Run) -> None:
    ran = run("info", "hf:owner/other")
    assert (ran.code, ran.out) == (2, "")
    assert "does not exist, or is private or gated" in ran.err
    ran = run("info", "hf:owner/name@v9")
    assert "has no revision v9; leave @v9 out" in ran.err


def test_offline_what_was_fetched_before_serves(
    run: Run, server: Stub, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["model.onnx"] = model_file.read_bytes()
    assert run("info", "hf:owner/name").code == 0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run("info", "hf:owner/name").code == 0
    assert run("info", f"hf:owner/name@{COMMIT}").code == 0
    ran = run("info", "hf:owner/other")
    assert (ran.code, ran.out) == (2, "")
    assert "http://127.0.0.1:9 is not reached, and owner/other is not in" in ran.err


def test_without_the_extra_it_says_what_to_type(
    run: Run, monkeypatch: pytest.MonkeyPatch, model_file: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"repzoo\[hub\]"):
        repzoo.load("hf:owner/name")
    ran = run("push", model_file, "owner/name")
    assert (ran.code, "pip install 'repzoo[hub]'" in ran.err) == (2, True)
    # A folder needs neither the extra nor a network.
    assert run("push", model_file, "owner/name", "-o", tmp_path / "folder").code == 0


def test_weights_are_loaded_as_the_model_that_the_configuration_names(
    server: Stub, monkeypatch: pytest.MonkeyPatch, trained: Artifact
) -> None:
    server.files["model.safetensors"] = b"weights"
    with pytest.raises(InputError, match="name the catalog model"):
        repzoo.load("hf:owner/name")
    asked = []

    def load_checkpoint(path: Path, model: str, _: Any) -> repzoo.Artifact:
        asked.append((path.read_bytes(), model))
        return repzoo.Artifact.wrap(trained)

    monkeypatch.setattr(load_model, "_from_checkpoint", load_checkpoint)
    server.files["config.json"] = b'{"architecture": "repghostnet_050"}'
    loaded = repzoo.load("hf:owner/name")
    assert loaded.origin == f"hf:owner/name/model.safetensors@{COMMIT}"
    for configuration in (
        b"[]",
        b"{",
        b'{"architecture": ["x"]}',
        b'{"architecture": "x"}',
    ):
        server.files["config.json"] = configuration
        monkeypatch.setenv("REPZOO_CACHE", str(Path(os.environ["REPZOO_CACHE"]) / "x"))
        repzoo.load("hf:owner/name")
    assert asked == [(b"weights", "repghostnet_050"), *[(b"weights", "")] * 4]


# Pushing


@pytest.fixture
def card_folder(model_file: Path, tmp_path: Path) -> Path:
    """What `repzoo card` leaves, as far as it matters here."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "m.int8.onnx").write_bytes(model_file.read_bytes())
    text = "---\nlicense: apache-2.0\nlibrary_name: repzoo\n---\n# card\n"
    (folder / "card.md").write_text(text, "utf-8")
    (folder / "records.jsonl").write_text("{}\n", "utf-8")
    (folder / "secret.key").write_text("secret", "utf-8")
    (folder / "link.json").symlink_to(folder / "secret.key")
    return folder


PUSHED = {"README.md", "card.md", "m.int8.onnx", "records.jsonl"}


def test_what_is_pushed_can_be_loaded(
    run: Run, server: Stub, card_folder: Path
) -> None:
    ran = run("push", card_folder, "owner/name")
    assert ran.code == 0, ran.err
    assert set(server.files) == PUSHED
    assert server.files["README.md"] == server.files["card.md"]
    assert server.is_private
    assert f"/owner/name/commit/{COMMIT}" in ran.out.replace("\n", "")
    assert "note: not uploaded: link.json, secret.key" in ran.err
    name = f"hf:owner/name@{COMMIT}"
    assert ran.err.splitlines()[-1] == f"next: repzoo info {name}"
    own = Artifact.read(card_folder / "m.int8.onnx")
    assert repzoo.load(name).sha256 == own.sha256
    document = run("push", card_folder, "owner/name", "--public", "--json").document
    assert (set(document["files"]), document["commit"]) == (PUSHED, COMMIT)
    assert not server.is_private


def test_a_local_folder_gets_the_same_files(card_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    pushed = repzoo.push(card_folder, "owner/name", output=folder)
    assert {path.name for path in folder.iterdir()} == PUSHED == set(pushed.files)
    assert (folder / "README.md").read_text() == (card_folder / "card.md").read_text()
    with pytest.raises(InputError, match="is not an empty folder"):
        repzoo.push(card_folder, "owner/name", output=folder)


def test_a_card_without_a_license_is_remarked(
    card_folder: Path, tmp_path: Path
) -> None:
    for text in ("# card\n", "---\nlicense: unknown\n---\n", "---\n[\n---\n", "---\nx"):
        (card_folder / "card.md").write_text(text, "utf-8")
        folder = tmp_path / str(len(text))
        pushed = repzoo.push(card_folder, "owner/name", output=folder)
        assert "states no license" in pushed.remarks[0], text
    (card_folder / "card.md").unlink()
    pushed = repzoo.push(card_folder, "owner/name", output=tmp_path / "without")
    assert pushed.remarks[0].startswith("there is no card.md")


def test_a_push_without_a_network_is_a_sentence(
    run: Run, server: Stub, card_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    ran = run("push", card_folder, "owner/name")
    assert (ran.code, ran.out, server.requests) == (2, "", [])
    assert "http://127.0.0.1:9 is not reached, so nothing is uploaded" in ran.err


def test_what_cannot_be_pushed_is_a_sentence(
    run: Run, server: Stub, card_folder: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for source, repository, message in (
        (tmp_path / "none", "owner/name", "does not exist"),
        (empty, "owner/name", "holds no .onnx or .safetensors file"),
        (card_folder / "card.md", "owner/name", "is no model"),
        (card_folder, "name", "expected owner/name"),
        (card_folder, "owner/../name", "expected owner/name"),
    ):
        ran = run("push", source, repository)
        assert (ran.code, ran.out) == (2, ""), message
        assert message in ran.err
    assert not server.requests


# What is pushed names no folder of this machine


def _traced(model: Artifact, path: Path, text: str) -> Artifact:
    """The model with a stack trace, as PyTorch's exporter writes them, saved at `path`."""
    model.model.graph.node[0].metadata_props.add(
        key="pkg.torch.onnx.stack_trace", value=text
    )
    return model.save(path)


def test_local_paths_are_replaced_and_hashes_stay_true(
    run: Run, card_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann lee")
    monkeypatch.setenv("LOGNAME", "ann")
    trace = 'File "/home/ann lee/net.py", line 5, in forward'
    train = _traced(
        Artifact.read(card_folder / "m.int8.onnx"), card_folder / "m.train.onnx", trace
    )
    int8 = train.then(train.model, repzoo.Step("quantize", "0")).save(
        card_folder / "m.int8.onnx"
    )
    texts = {
        "card.md": f"```\nrepzoo card '{tmp_path}/m.onnx' --data=/home/ann/photos\n```\n",
        "records.jsonl": f'{{"note": "in\\n/mnt/x/a.png"}}\n{int8.sha256}\n',
    }
    for name, text in texts.items():
        (card_folder / name).write_text(f"{text}{train.sha256}\n", "utf-8")
    before = {path.name: path.read_bytes() for path in card_folder.iterdir()}
    folder = tmp_path / "repository"
    ran = run("push", card_folder, "owner/name", "-o", folder)
    assert ran.code == 0, ran.err
    assert "local paths were replaced by file names, in " in ran.err
    # What is here stays as it is.
    assert before == {path.name: path.read_bytes() for path in card_folder.iterdir()}
    pushed = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert not any(b"/home" in data or b"ann" in data for data in pushed.values())
    assert not any(str(tmp_path).encode() in data for data in pushed.values())
    new_train = Artifact.read(folder / "m.train.onnx")
    new_int8 = Artifact.read(folder / "m.int8.onnx")
    assert new_train.model.graph.node[0].metadata_props[0].value == (
        'File "net.py", line 5, in forward'
    )
    assert new_int8.steps[-1].input_sha256 == new_train.sha256 != train.sha256
    card = f"```\nrepzoo card 'm.onnx' --data=photos\n```\n{new_train.sha256}\n"
    assert pushed["card.md"].decode() == pushed["README.md"].decode() == card
    assert pushed["records.jsonl"].decode() == (
        f'{{"note": "in\\na.png"}}\n{new_int8.sha256}\n{new_train.sha256}\n'
    )


def test_files_without_local_paths_are_pushed_as_they_are(
    run: Run, card_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "repository"
    ran = run("push", card_folder, "owner/name", "-o", folder)
    assert (ran.code, "replaced" in ran.err) == (0, False)
    for name in PUSHED - {"README.md"}:
        assert (folder / name).read_bytes() == (card_folder / name).read_bytes()


def test_the_name_of_the_account_outside_of_paths_is_remarked(
    run: Run, card_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ann")
    (card_folder / "records.jsonl").write_text('{"data": "ann"}\n', "utf-8")
    ran = run("push", card_folder, "owner/name", "-o", tmp_path / "repository")
    assert "the name of your account, 'ann', is in records.jsonl" in ran.err


def test_models_whose_weights_stay_behind_are_refused(
    run: Run, trained: Artifact, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(trained.model, path, save_as_external_data=True, location="m.onnx.data")
    ran = run("push", path, "owner/name", "-o", tmp_path / "repository")
    assert (ran.code, ran.out) == (2, "")
    assert "keeps weights in another file" in ran.err


def test_weights_whose_header_holds_a_path_are_refused(
    run: Run, tmp_path: Path
) -> None:
    for text, message in (
        ('{"__metadata__": {"from": "/home/ann/x.pt"}}', "holds paths of this machine"),
        ("[", "is not a readable .safetensors file"),
    ):
        path = tmp_path / "w.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
        ran = run("push", path, "owner/name", "-o", tmp_path / "repository")
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err
