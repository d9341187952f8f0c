import hashlib
import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model, get_model_weights

from featcache.cli.main import run
from featcache.errors import WeightsError
from featcache.extraction import weights as module
from featcache.extraction.registry import open_backbone
from featcache.extraction.state_dict import read_state
from featcache.extraction.weights import Published, find_weights, hub_folder

NET = "squeezenet1_1"
URL = get_model_weights(NET).DEFAULT.url
OFFICIAL = URL.rsplit("/", 1)[1]


@pytest.fixture(autouse=True)
def downloads(monkeypatch):
    """No test reaches out; what would have been downloaded is noted."""
    seen = []

    def refuse(url, *_, **__):
        seen.append(url)
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return seen


@pytest.fixture(scope="module")
def trained():
    """A network with weights of its own: no two tests should take them for random ones."""
    with torch.random.fork_rng():
        torch.manual_seed(99)
        return get_model(NET, weights=None)


@pytest.fixture
def state(trained):
    return trained.state_dict()


@pytest.fixture
def mine(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    return folder


def published(content, tag="V1"):
    """A file that the library publishes, with this content."""
    digest = hashlib.sha256(content).hexdigest()
    return {tag: Published(tag, f"https://example.org/models/net-{digest[:8]}.pth")}


def assert_no_advice_of_torch(said):
    """Its messages tell the reader to open the file in a way that runs what is in it."""
    for advice in ("weights_only", "Re-running", "option", "safe_globals", "file an issue", "\x1b"):
        assert advice not in str(said)


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def built(path, name=NET, **options):
    return open_backbone(name, weights=str(path), image_size=32, **options).build()


def equal(network, state):
    ours = network.state_dict()
    return bool(ours) and all(torch.equal(value, state[name]) for name, value in ours.items())


class TestFind:
    def test_auto_takes_safetensors_from_the_folder(self, mine, trained):
        save_file(trained.state_dict(), mine / f"{NET}.safetensors")
        found = open_backbone(NET, weights_dir=mine)
        assert found.weights == "local"
        assert found.weights_sha256 == sha(mine / f"{NET}.safetensors")
        assert equal(open_backbone(NET, weights_dir=mine).build(), trained.state_dict())

    @pytest.mark.parametrize("name", [f"{NET}.pth", f"{NET}-my_run.pth"])
    def test_auto_takes_a_file_of_ones_own(self, mine, trained, name):
        torch.save(trained.state_dict(), mine / name)
        assert equal(open_backbone(NET, weights_dir=mine).build(), trained.state_dict())

    def test_the_variable_names_the_folder(self, mine, trained, monkeypatch):
        save_file(trained.state_dict(), mine / f"{NET}.safetensors")
        monkeypatch.setenv("FEATCACHE_WEIGHTS", str(mine))
        assert open_backbone(NET).weights == "local"
        monkeypatch.setenv("HOME", str(mine.parent))
        monkeypatch.setenv("FEATCACHE_WEIGHTS", "~/weights")
        assert open_backbone(NET).weights == "local"

    def test_the_published_file_is_known_by_name_and_hash(self, mine):
        known = published(b"content")
        path = mine / known["V1"].file
        path.write_bytes(b"content")
        found = find_weights("net", "auto", known, mine)
        assert (found.tag, found.path) == ("V1", path)
        assert found.sha256 == hashlib.sha256(b"content").hexdigest()

    @pytest.mark.parametrize("spec", ["auto", "V1", "path"])
    def test_a_published_name_with_another_content_is_refused(self, mine, spec):
        known = published(b"content")
        path = mine / known["V1"].file
        path.write_bytes(b"cont")
        spec = str(path) if spec == "path" else spec
        with pytest.raises(WeightsError, match="is not the published file") as caught:
            find_weights("net", spec, known, mine)
        assert known["V1"].hash_prefix in caught.value.problem

    def test_torchs_hub_folder(self, tmp_path, monkeypatch):
        known = published(b"content")
        assert hub_folder() == tmp_path / "torch_home" / "hub" / "checkpoints"
        hub_folder().mkdir(parents=True)
        (hub_folder() / known["V1"].file).write_bytes(b"content")
        assert find_weights("net", "auto", known).path.parent == hub_folder()
        (hub_folder() / "net-mine.pth").write_bytes(b"other")  # not for us to choose there
        assert find_weights("net", "auto", known).tag == "V1"

    def test_ones_own_folder_comes_before_the_hub(self, mine):
        known = published(b"content")
        hub_folder().mkdir(parents=True)
        (hub_folder() / known["V1"].file).write_bytes(b"content")
        (mine / "net.safetensors").write_bytes(b"mine")
        assert find_weights("net", "auto", known, mine).tag == "local"
        assert find_weights("net", "V1", known, mine).tag == "V1"

    def test_an_older_published_file_in_the_folder_keeps_its_tag_and_transforms(self, mine):
        old, new = published(b"old", "V1"), published(b"new", "V2")
        (mine / old["V1"].file).write_bytes(b"old")
        assert find_weights("net", "auto", new | old, mine).tag == "V1"
        (mine / old["V1"].file).write_bytes(b"damaged")
        with pytest.raises(WeightsError, match="not the published file"):
            find_weights("net", "auto", new | old, mine)

    def test_transforms_are_those_of_the_tag(self, mine, monkeypatch):
        """resnet50: V1 resizes to 256, V2 to 232."""
        enum = get_model_weights("resnet50")
        path = mine / enum.IMAGENET1K_V1.url.rsplit("/", 1)[1]
        path.write_bytes(b"x")
        monkeypatch.setattr(module, "_checked", lambda p, w: module.Weights(w.tag, "0" * 64, p))
        assert open_backbone("resnet50", weights_dir=mine).preprocess.resize == 256
        assert open_backbone("resnet50", weights="random").preprocess.resize == 232

    def test_several_candidates_are_named(self, mine):
        for name in ("net-a.pth", "net-b.pth"):
            (mine / name).write_bytes(b"x")
        with pytest.raises(WeightsError, match=r"several .*net-a\.pth, net-b\.pth") as caught:
            find_weights("net", "auto", published(b"c"), mine)
        assert "--weights PATH" in caught.value.remedy

    def test_a_name_that_only_begins_alike_is_another_architecture(self, mine, downloads):
        (mine / "net_large.pth").write_bytes(b"x")
        (mine / "net_large-1.pth").write_bytes(b"x")
        with pytest.raises(WeightsError, match="can't be downloaded"):
            find_weights("net", "auto", published(b"c"), mine)

    def test_a_path(self, mine):
        (mine / "w.pth").write_bytes(b"x")
        found = find_weights("net", str(mine / "w.pth"), published(b"c"))
        assert (found.tag, found.sha256) == ("local", sha(mine / "w.pth"))

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("none.pth", r"no weights 'none\.pth'\n.*its tags: V1"),
            ("IMAGENET", "its tags: V1"),
            (".", "is a folder\n.*--weights-dir"),
        ],
    )
    def test_what_is_no_file(self, spec, message):
        with pytest.raises(WeightsError, match=message):
            find_weights("net", spec, published(b"c"))

    def test_a_folder_that_is_not_there_is_said(self, tmp_path):
        with pytest.raises(WeightsError, match="no weights folder"):
            find_weights("net", "auto", published(b"c"), tmp_path / "none")

    def test_the_same_name_with_another_content_is_another_key(self, tmp_path):
        keys = []
        for i in (0, 1):
            folder = tmp_path / str(i)
            folder.mkdir()
            (folder / f"{NET}.safetensors").write_bytes(bytes([i]))
            keys.append(open_backbone(NET, weights_dir=folder).key())
        assert keys[0].digest != keys[1].digest
        assert [d.split()[0] for d in keys[0].differences(keys[1])] == ["weights_sha256"]


class TestOffline:
    def test_names_the_file_its_hash_the_folders_and_three_remedies(self, mine, downloads):
        with pytest.raises(WeightsError) as caught:
            open_backbone(NET, weights_dir=mine)
        assert downloads == [URL]
        problem, remedy = caught.value.problem, caught.value.remedy
        assert OFFICIAL in problem
        assert OFFICIAL.split("-")[1].split(".")[0] in problem
        assert str(mine) in problem
        assert str(hub_folder()) in problem
        assert [line[:2] for line in remedy.splitlines()] == ["- "] * 3
        for word in (URL, "--weights-dir", "FEATCACHE_WEIGHTS", "random:0"):
            assert word in remedy
        assert caught.value.exit_code == 1

    @pytest.mark.parametrize(
        "error",
        [
            HTTPError(URL, 503, "busy", None, None),
            TimeoutError("slow"),
            ConnectionResetError("gone"),
            RuntimeError('invalid hash value (expected "ab", got "cd")'),
        ],
    )
    def test_whatever_breaks_the_download(self, monkeypatch, error):
        def broken(*_, **__):
            raise error

        monkeypatch.setattr(torch.hub, "download_url_to_file", broken)
        with pytest.raises(WeightsError, match="can't be downloaded"):
            open_backbone(NET)

    def test_never_a_silent_switch_to_random(self, downloads):
        with pytest.raises(WeightsError):
            open_backbone(NET, weights="IMAGENET1K_V1")

    def test_a_download_is_kept_in_the_hub_folder_and_checked(self, monkeypatch):
        known = published(b"content")

        def download(url, path, hash_prefix=None, progress=True):
            assert (url, hash_prefix) == (known["V1"].url, known["V1"].hash_prefix)
            Path(path).write_bytes(b"content")

        monkeypatch.setattr(torch.hub, "download_url_to_file", download)
        assert find_weights("net", "auto", known).path == hub_folder() / known["V1"].file


class _Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["FEATCACHE_TEST_EVIL"],)


class TestRead:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda s: s,
            lambda s: {"state_dict": s, "epoch": 3},
            lambda s: {"model": s, "optimizer": {"lr": 0.1}},
            lambda s: {"model_state_dict": s},
            lambda s: OrderedDict((f"module.{name}", v) for name, v in s.items()),
            lambda s: {"state_dict": {f"module.{name}": v for name, v in s.items()}},
            lambda s: {name: v.double() for name, v in s.items()},
            lambda s: dict(reversed(s.items())),
        ],
        ids="plain state_dict model model_state_dict module both double order".split(),
    )
    def test_checkpoints_as_people_save_them(self, tmp_path, state, wrap):
        torch.save(wrap(state), tmp_path / "w.pth")
        assert equal(built(tmp_path / "w.pth"), state)

    def test_half_precision_is_read_as_float(self, tmp_path, state):
        save_file({n: v.half() for n, v in state.items()}, tmp_path / "w.safetensors")
        network = built(tmp_path / "w.safetensors")
        assert equal(network, {n: v.half().float() for n, v in state.items()})

    def test_old_format_of_torch(self, tmp_path, state):
        torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
        assert equal(built(tmp_path / "w.pth"), state)

    def test_a_pickle_that_would_run_code_does_not_run(self, tmp_path, monkeypatch, state):
        mark = tmp_path / "it ran"
        monkeypatch.setenv("FEATCACHE_TEST_EVIL", str(mark))
        for i, content in enumerate([_Evil(), {"state_dict": state, "x": _Evil()}]):
            torch.save(content, tmp_path / f"{i}.pth")
            (tmp_path / f"{i}.pt").write_bytes(pickle.dumps(content))
            for path in (tmp_path / f"{i}.pth", tmp_path / f"{i}.pt"):
                with pytest.raises(WeightsError, match="it holds Python objects") as caught:
                    read_state(path)
                assert_no_advice_of_torch(caught.value)
        assert not mark.exists()

    def test_a_whole_pickled_network_is_refused(self, tmp_path, trained):
        torch.save(trained, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=r"objects .torchvision.*SqueezeNet") as caught:
            read_state(tmp_path / "w.pth")
        assert "save_file(network.state_dict()" in caught.value.remedy
        assert_no_advice_of_torch(caught.value)

    def test_the_command_s_refusal_is_our_own(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("FEATCACHE_TEST_EVIL", str(tmp_path / "it ran"))
        (tmp_path / "bad.pth").write_bytes(pickle.dumps(_Evil()))
        options = ["--backbone", NET, "--image-size", "32", "--weights", "bad.pth"]
        assert run(["extract", *options]) == 1
        assert not (tmp_path / "it ran").exists()
        said = capsys.readouterr().err
        assert "bad.pth can't be read as weights: it holds Python objects" in said
        assert_no_advice_of_torch(said)

    @pytest.mark.parametrize("content", [3, [torch.zeros(1)], {"a": 3}, {0: torch.zeros(1)}, "x"])
    def test_what_is_no_state_dict(self, tmp_path, content):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="no state dict of tensors"):
            read_state(tmp_path / "w.pth")

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04", bytes(100)])
    def test_what_is_no_weight_file(self, tmp_path, suffix, content):
        (tmp_path / f"w{suffix}").write_bytes(content)
        with pytest.raises(WeightsError, match="can't be read as weights") as caught:
            read_state(tmp_path / f"w{suffix}")
        assert_no_advice_of_torch(caught.value)

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_truncated(self, tmp_path, state, suffix):
        path = tmp_path / f"w{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(WeightsError, match="can't be read as weights"):
            built(path)

    @pytest.mark.filterwarnings("ignore")  # torch warns of files that look like TorchScript
    @pytest.mark.parametrize("old", [False, True])
    @pytest.mark.parametrize("rounds", [150, pytest.param(5000, marks=pytest.mark.slow)])
    def test_damaged_files_raise_nothing_else(self, tmp_path, old, rounds):
        path, rng = tmp_path / "w.pth", random.Random(0)
        small = {"a.weight": torch.arange(6.0), "a.bias": torch.zeros(2, 3)}
        torch.save(small, path, _use_new_zipfile_serialization=not old)
        whole = path.read_bytes()
        for _ in range(rounds):
            data = bytearray(whole)
            for _ in range(rng.choice((1, 3, 30))):
                data[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
            try:
                read_state(path)
            except WeightsError as error:
                refused = error
                assert_no_advice_of_torch(error)
        assert refused.remedy or refused.problem


class TestFit:
    def test_weights_of_another_architecture(self, tmp_path):
        torch.save(get_model("shufflenet_v2_x0_5", weights=None).state_dict(), tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=rf"holds no weights of {NET} \(absent: .*left over"):
            built(tmp_path / "w.pth")

    def test_a_sister_with_other_shapes(self, tmp_path):
        torch.save(get_model("squeezenet1_0", weights=None).state_dict(), tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=r"features\.0\.weight"):
            built(tmp_path / "w.pth")

    def test_a_missing_tensor(self, tmp_path, trained):
        state = trained.state_dict()
        del state["features.3.squeeze.weight"]
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=r"absent: features\.3\.squeeze\.weight\)"):
            built(tmp_path / "w.pth")

    @pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "squeezenet1_1"])
    def test_a_fine_tuned_head_of_another_size_is_accepted(self, tmp_path, name):
        tuned = get_model(name, weights=None, num_classes=7)
        torch.save(tuned.state_dict(), tmp_path / "w.pth")
        assert equal(built(tmp_path / "w.pth", name), tuned.state_dict())

    def test_a_file_without_a_head_is_accepted(self, tmp_path):
        state = get_model("resnet18", weights=None).state_dict()
        headless = {n: v for n, v in state.items() if not n.startswith("fc.")}
        torch.save(headless, tmp_path / "w.pth")
        assert equal(built(tmp_path / "w.pth", "resnet18"), state)

    def test_files_from_before_batches_were_counted(self, tmp_path):
        state = get_model("resnet18", weights=None).state_dict()
        old = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
        torch.save(old, tmp_path / "w.pth")
        assert equal(built(tmp_path / "w.pth", "resnet18"), state)

    def test_old_names_in_densenet(self, tmp_path):
        import re

        state = get_model("densenet121", weights=None).state_dict()
        # As in densenet121-a639ec97.pth: norm.1.weight stands for norm1.weight.
        old = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.", n): v
            for n, v in state.items()
            if not n.endswith("num_batches_tracked")
        }
        assert "features.denseblock1.denselayer1.norm.1.weight" in old
        torch.save(old, tmp_path / "w.pth")
        assert equal(built(tmp_path / "w.pth", "densenet121"), state)

    @pytest.mark.parametrize("how", ["with metadata", "without", "safetensors", "parallel"])
    def test_mnasnet_needs_to_know_its_version(self, tmp_path, how):
        network = get_model("mnasnet0_5", weights=None)
        state = network.state_dict()
        path = tmp_path / ("w.safetensors" if how == "safetensors" else "w.pth")
        if how == "safetensors":
            save_file(state, path)
        elif how == "parallel":
            torch.save(nn.DataParallel(network).state_dict(), path)
        else:
            torch.save(state if how == "with metadata" else dict(state), path)
        assert equal(built(path, "mnasnet0_5"), state)

    def test_auxiliary_heads_are_left_out(self, tmp_path):
        trained = get_model("googlenet", weights=None, init_weights=False, aux_logits=True)
        torch.save(trained.state_dict(), tmp_path / "w.pth")
        assert equal(built(tmp_path / "w.pth", "googlenet"), trained.state_dict())
