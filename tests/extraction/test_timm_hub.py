"""timm's models on the hub and in folders: files placed by hand, no network, tiny networks."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from featcache.cli.backbones import backbones
from featcache.errors import DataError, FeatcacheError, UnknownName, WeightsError
from featcache.extraction.engine import Engine
from featcache.extraction.registry import FAMILIES, check_backbones, family_of, open_backbone
from featcache.extraction.timm_hub import CARDS
from featcache.prediction.bundle_reader import open_recorded
from featcache.store.spec import means, split_key

timm = pytest.importorskip("timm")

TINY = {
    "depth": 3, "embed_dim": 48, "num_heads": 3, "img_size": 56, "reg_tokens": 2,
    "init_values": 1e-5, "dynamic_img_size": True,
}  # fmt: skip
SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
DATA = {
    "mean": [0.7, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic", "crop_pct": 1.0,
    "input_size": [3, 56, 56], "fixed_input_size": True, "license": "mit",
}  # fmt: skip
ARCHITECTURE = "vit_small_patch14_dinov2"


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """An empty cache of the hub, and no way to it."""

    def refuse(*_, **__):
        raise FileNotFoundError("no connection to huggingface.co")

    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.delenv("FEATCACHE_WEIGHTS", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def tiny(**arguments):
    """timm's own network, as somebody makes it by hand."""
    made = TINY | arguments
    if "mlp_layer" in made:
        made["mlp_layer"] = getattr(timm.layers, made["mlp_layer"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return timm.create_model(ARCHITECTURE, num_classes=0, **made).eval()


def fill(folder, model, arguments, pickled=False, **config):
    """config.json and weights, as they lie in a repository."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"architecture": ARCHITECTURE, "num_classes": 0, "model_args": arguments,
             "pretrained_cfg": DATA} | config  # fmt: skip
    (folder / "config.json").write_text(json.dumps(plain))
    if pickled:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def run(network, side=56):
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network.eval()(x)


def of_repository(hub, repository, revision="main"):
    return hub / f"models--{repository.replace('/', '--')}" / "snapshots" / revision


class TestFolder:
    def test_its_network_and_preprocessing_are_timms(self, tmp_path):
        model = tiny(**SWIGLU)
        folder = fill(tmp_path / "mine", model, TINY | SWIGLU)
        backbone = open_backbone(f"timm:local-dir:{folder}")
        torch.testing.assert_close(run(backbone.build()), run(model))
        assert backbone.preprocess.mean == (0.7, 0.5, 0.6)
        assert (backbone.preprocess.crop, backbone.preprocess.resize) == (56, 56)
        other = open_backbone(f"timm:local-dir:{folder}:pool=cls+mean:size=84").build()
        x = torch.randn(2, 3, 84, 84)
        with torch.no_grad():
            tokens = model.forward_features(x)
            expected = torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], dim=1)
            torch.testing.assert_close(other.eval()(x), expected)

    def test_the_key_knows_content_and_arguments_but_no_path(self, tmp_path):
        one = fill(tmp_path / "a" / "mine", tiny(), TINY)
        two = fill(tmp_path / "b" / "mine", tiny(), TINY)
        keys = [open_backbone(f"timm:local-dir:{folder}").key() for folder in (one, two)]
        assert keys[0] == keys[1]
        assert keys[0].backbone == "timm:local-dir:mine"
        assert means(f"timm:local-dir:{two}", keys[0])
        fill(two, tiny(), TINY | {"global_pool": "avg"})
        other = open_backbone(f"timm:local-dir:{two}").key()
        assert other.weights_sha256 == keys[0].weights_sha256
        assert [one.split()[0] for one in keys[0].differences(other)] == ["config"]

    def test_it_is_found_in_the_folder_of_weights_by_its_name(self, tmp_path):
        folder = fill(tmp_path / "weights" / "mine", tiny(), TINY, pickled=True)
        found = open_backbone("timm:local-dir:mine", weights_dir=tmp_path / "weights")
        assert found.key() == open_backbone(f"timm:local-dir:{folder}").key()
        torch.testing.assert_close(run(found.build()), run(tiny()))

    def test_its_name_brings_the_models_card(self, tmp_path):
        model = tiny(global_pool="", **SWIGLU)
        named = fill(tmp_path / "Virchow2", model, TINY | {"global_pool": ""})
        backbone = open_backbone(f"timm:local-dir:{named}")
        assert backbone.layer == "penultimate:cls+mean"
        tokens = run(model)
        expected = torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], dim=1)
        torch.testing.assert_close(run(backbone.build()), expected)

    def test_tokens_without_a_card_ask_how_they_are_pooled(self, tmp_path):
        folder = fill(tmp_path / "mine", tiny(global_pool=""), TINY | {"global_pool": ""})
        with pytest.raises(FeatcacheError, match="gives an array of 3 dimensions") as caught:
            Engine(batch_size=2).load(open_backbone(f"timm:local-dir:{folder}"))
        assert "pool=cls+mean" in caught.value.remedy
        assert run(open_backbone(f"timm:local-dir:{folder}:pool=max").build()).shape == (2, 48)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"architecture": "vit_of_tomorrow"}, "no architecture 'vit_of_tomorrow'"),
            ({"architecture": None, "model_type": "dinov2"}, "of the library transformers"),
            ({"model_args": {"checkpoint_path": "/x.bin"}}, "checkpoint_path can't be followed"),
            ({"model_args": {"mlp_layer": "os.system"}}, "mlp_layer 'os.system'"),
            ({"model_args": {"no_such": 1}}, "timm can't make"),
            ({"model_args": ["depth"]}, "model_args is no mapping"),
            ({"pretrained_cfg": DATA | {"mean": [0.5]}}, "mean is"),
            ({"pretrained_cfg": DATA | {"crop_pct": 0}}, "crop_pct is 0"),
            ({"pretrained_cfg": DATA | {"input_size": [1, 56, 56]}}, "sees 1 channels"),
        ],
    )  # fmt: skip
    def test_a_configuration_that_cant_be_followed(self, tmp_path, config, message):
        folder = fill(tmp_path / "mine", tiny(), TINY, **config)
        with pytest.raises(FeatcacheError, match=message) as caught:
            open_backbone(f"timm:local-dir:{folder}").build()
        assert caught.value.remedy

    def test_what_is_absent_is_named(self, tmp_path):
        with pytest.raises(WeightsError, match="no such folder"):
            open_backbone("timm:local-dir:nowhere")
        (tmp_path / "empty").mkdir()
        with pytest.raises(WeightsError, match=r"has no config\.json"):
            open_backbone("timm:local-dir:empty")
        folder = fill(tmp_path / "mine", tiny(), TINY)
        (folder / "model.safetensors").unlink()
        with pytest.raises(WeightsError, match=r"has no model\.safetensors"):
            open_backbone("timm:local-dir:mine")
        open_backbone("timm:local-dir:mine:weights=random").build()

    def test_weights_of_other_arguments_are_refused(self, tmp_path):
        folder = fill(tmp_path / "mine", tiny(**SWIGLU), TINY)
        with pytest.raises(WeightsError):
            open_backbone(f"timm:local-dir:{folder}").build()


class TestHub:
    NAME = "timm:hf-hub:MahmoodLab/Tiny"

    @pytest.mark.parametrize("pickled", [False, True])
    def test_files_placed_by_hand_are_all_it_needs(self, hub, pickled):
        folder = of_repository(hub, "MahmoodLab/Tiny")
        fill(folder, tiny(**SWIGLU), TINY | SWIGLU, pickled)
        backbone = open_backbone(self.NAME)
        key = backbone.key()
        assert (key.backbone, key.weights) == (self.NAME, "main")
        assert "/" not in key.stem
        torch.testing.assert_close(run(backbone.build()), run(tiny(**SWIGLU)))

    def test_a_revision_is_another_backbone(self, hub):
        fill(of_repository(hub, "MahmoodLab/Tiny"), tiny(), TINY)
        commit = "0123456789" * 4
        for revision in ("v2", commit):
            fill(of_repository(hub, "MahmoodLab/Tiny", revision), tiny(), TINY)
            key = open_backbone(f"{self.NAME}@{revision}").key()
            assert key.weights == revision
            assert key != open_backbone(self.NAME).key()
            assert means(f"{self.NAME}@{revision}", key)
            assert split_key(f"{self.NAME}@{revision}") == (f"{self.NAME}@{revision}", "")
            assert split_key(f"{self.NAME}@{revision}@7be2d41c")[1] == "7be2d41c"
        assert split_key(f"{self.NAME}@7be2d41c") == (self.NAME, "7be2d41c")

    def test_what_is_absent_says_how_to_come_by_it(self, hub):
        name = "timm:hf-hub:MahmoodLab/UNI2-h"
        with pytest.raises(WeightsError, match="can't be downloaded: no connection") as caught:
            open_backbone(name)
        for said in ("is gated", "accept its terms", "HF_TOKEN", "timm:local-dir:",
                     str(of_repository(hub, "MahmoodLab/UNI2-h"))):  # fmt: skip
            assert said in caught.value.remedy
        folder = of_repository(hub, "MahmoodLab/UNI2-h")
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"architecture": "vit_giant_patch14_224"}))
        with pytest.raises(WeightsError, match="needs the weights") as caught:
            open_backbone(name)
        assert str(folder) in caught.value.remedy

    @pytest.mark.parametrize(
        "name",
        ["../x", "a", "a/..", "a/b/c", "a/b@../c", "a/b@", "a--b/c", "/etc/x", "a/b@-x", "a/b.git"],
    )
    def test_names_that_lead_elsewhere_are_refused(self, name):
        with pytest.raises(UnknownName):
            open_backbone(f"timm:hf-hub:{name}")

    def test_long_names_make_short_files(self, tmp_path):
        folder = fill(tmp_path / ("x" * 240), tiny(), TINY)
        stem = open_backbone(f"timm:local-dir:{folder}").key().stem
        assert len(stem) < 220


@pytest.mark.parametrize("name", CARDS)
def test_every_cards_arguments_make_a_network_of_the_size_it_says(name, hub):
    """The architectures of their config.json, made on no device."""
    architecture, arguments = {
        "MahmoodLab/UNI2-h": ("vit_giant_patch14_224", {}),
        "MahmoodLab/UNI": ("vit_large_patch16_224", {}),
        "paige-ai/Virchow": ("vit_huge_patch14_224", {
            "mlp_ratio": 5.3375, "global_pool": "", "init_values": 1e-5}),
        "paige-ai/Virchow2": ("vit_huge_patch14_224", {
            "mlp_ratio": 5.3375, "global_pool": "", "init_values": 1e-5, "reg_tokens": 4}),
        "bioptimus/H-optimus-0": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224}),
        "bioptimus/H-optimus-1": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224}),
        "bioptimus/H0-mini": ("vit_base_patch14_reg4_dinov2", {
            "mlp_ratio": 5.33334, "global_pool": "", "img_size": 224}),
        "prov-gigapath/prov-gigapath": ("vit_giant_patch14_dinov2", {
            "img_size": 224, "patch_size": 16, "mlp_ratio": 5.33334}),
    }.get(name, (name.partition("/")[2].partition(".")[0], {}))  # fmt: skip
    card = CARDS[name]
    folder = of_repository(hub, name)
    folder.mkdir(parents=True)
    plain = {"architecture": architecture, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(plain))
    (backbone,) = check_backbones(f"timm:hf-hub:{name}")
    with torch.device("meta"), torch.no_grad():
        network = backbone.build().eval()
        vector = network(torch.zeros(1, 3, *[backbone.preprocess.crop] * 2))
    millions = sum(tensor.numel() for tensor in network.parameters()) / 1e6
    assert vector.shape[1] == card.dim
    assert millions == pytest.approx(card.millions, rel=0.03)


def test_plain_names_lead_to_specs_that_timm_has():
    for name, specs in FAMILIES.items():
        with pytest.raises(UnknownName, match="the name of several") as caught:
            open_backbone(name)
        assert specs[0] in caught.value.remedy
        for spec in specs:
            assert family_of(spec).published(spec)


def listed(*words):
    done = CliRunner().invoke(backbones, [*words, "--format", "json"], catch_exceptions=False)
    return json.loads(done.stdout)


def test_a_family_is_listed_with_licences_and_what_is_at_hand(hub):
    rows = listed("--search", "uni")
    assert [row["backbone"].rpartition("/")[2] for row in rows] == ["UNI2-h", "UNI"]
    assert {row["licence"] for row in rows} == {"cc-by-nc-nd-4.0"}
    assert [row["at_hand"] for row in rows] == [False, False]
    folder = of_repository(hub, "MahmoodLab/UNI")
    folder.mkdir(parents=True)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert [row["at_hand"] for row in listed("--search", "UNI")] == [False, True]
    assert [row["backbone"] for row in listed("--search", "mobilenet_v3_s*")] == [
        "mobilenet_v3_small"
    ]


def test_one_model_is_shown_with_how_it_prepares_images(tmp_path):
    fill(tmp_path / "mine", tiny(), TINY)
    (row,) = listed("timm:local-dir:mine:pool=cls+mean")
    assert (row["width"], row["pixels"], row["at_hand"]) == (96, 56, True)
    assert row["licence"] == "mit"
    assert "mean 0.7 0.5 0.6, std 0.2 0.25 0.3" in row["prepared"]


def recorded(backbone):
    """As a bundle has a backbone."""
    key = backbone.key()
    return {"name": key.backbone, "library": key.library, "weights": key.weights,
            "weights_sha256": key.weights_sha256, "layer": key.layer, "precision": "fp32",
            "dtype": "float32", "preprocess": dict(key.preprocess), "key": key.digest}  # fmt: skip


def test_a_bundle_finds_its_backbone_but_asks_no_repository(hub, monkeypatch):
    folder = fill(of_repository(hub, "a/Tiny"), tiny(), TINY)
    entry = recorded(open_backbone("timm:hf-hub:a/Tiny:pool=cls+mean"))
    assert open_recorded(entry).key().digest == entry["key"]
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("asked"))
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match="not at hand"):
        open_recorded(entry)
    with pytest.raises(DataError, match="names a path"):
        open_recorded(entry | {"name": "timm:local-dir:/etc"})
