"""State dicts and modules from checked data: the same values, the same ties, and none of the file's code."""

import io
import sys

import bad_models
import pytest
import torch
from torch import nn

from gemedge.capture import pickled, rebuild
from gemedge.capture.archive import parse_archive
from gemedge.errors import ModelError, UsageError


def opened(data: bytes):
    records = parse_archive(data).records
    return pickled.read(records), records


def rebuilt(model: nn.Module, **allowed: type) -> nn.Module:
    named = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in allowed.values()}
    return rebuild.module(*opened(bad_models.saved(model)), named)


MODELS = {
    "linear": lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1)),
    "convolution": lambda: nn.Sequential(
        nn.Conv1d(5, 3, 2, padding=1), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(27, 2)
    ),
    "lstm": lambda: nn.LSTM(8, 4, 2, bidirectional=True, batch_first=True),
    "gru": lambda: nn.GRU(8, 4),
    "transformer": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, activation="gelu", batch_first=True), 2, enable_nested_tensor=False
    ),
    "transformer with torch.relu": lambda: nn.TransformerEncoderLayer(8, 2, activation=torch.relu),
    "layer norm": lambda: nn.LayerNorm([5, 8]),
    "no layers": lambda: nn.Sequential(),
    "half": lambda: nn.Sequential(nn.Linear(8, 8)).double(),
}


@pytest.mark.parametrize("name", MODELS)
def test_rebuilt_module_computes_the_same_bits(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    again = rebuilt(model)
    x = torch.randn(2, 5, 8, dtype=torch.float64 if name == "half" else torch.float32)
    wanted, got = model(x), again(x)
    if isinstance(wanted, tuple):
        wanted, got = wanted[0], got[0]
    assert torch.equal(wanted, got)
    assert str(again) == str(model)
    assert again.training is False
    assert {k: (v.requires_grad, v.dtype) for k, v in again.named_parameters()} == {
        k: (v.requires_grad, v.dtype) for k, v in model.named_parameters()
    }


def test_rebuilt_module_can_be_trained_without_touching_the_file():
    data = bad_models.saved(nn.Linear(2, 1))
    kept = bytes(data)
    again = rebuild.module(*opened(data), {})
    again(torch.ones(3, 2)).sum().backward()
    with torch.no_grad():
        again.weight.add_(again.weight.grad)
    assert data == kept


def test_tied_parameters_shared_modules_and_shared_memory_remain_so():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.ReLU())
    model[1].weight = model[0].weight
    model.append(model[0])
    model.register_buffer("whole", torch.arange(6.0))
    model.register_buffer("part", model.whole[2:4], persistent=False)
    again = rebuilt(model)
    assert again[1].weight is again[0].weight
    assert again[3] is again[0]
    again.whole[2] = 9
    assert again.part.tolist() == [9, 3]
    assert list(again.state_dict()) == list(model.state_dict())


def test_frozen_parameters_stay_frozen_and_none_stays_none():
    model = nn.Linear(2, 2, bias=False)
    model.weight.requires_grad_(False)
    again = rebuilt(model)
    assert (again.weight.requires_grad, again.bias) == (False, None)


class WithAttributes(nn.Module):
    width = 3

    def __init__(self):
        super().__init__()
        self.sizes, self.limit, self.name, self.on = [1, (2, 3)], float("-inf"), "x", True
        self.width, self.kind, self.shape = 5, torch.float16, torch.Size([2])
        self.scale, self.options, self.act = torch.tensor(2.0), {"a": 1}, nn.functional.silu

    def __setstate__(self, state):
        raise AssertionError("its code ran")

    def forward(self, x):
        return self.act(x) * self.scale


def test_plain_attributes_come_through_and_no_code_of_the_class_runs():
    model = WithAttributes()
    again = rebuilt(model, it=WithAttributes)
    for name in ("sizes", "limit", "name", "on", "width", "kind", "shape", "options", "act"):
        assert getattr(again, name) == getattr(model, name)
    assert type(again.shape) is torch.Size
    assert torch.equal(again(torch.ones(3)), model(torch.ones(3)))


@pytest.mark.parametrize(
    ("name", "reason"),
    {
        "a class that is not allowed": r"classes that are not allowed; .* add --allow bad_models.Custom$",
        "a class that is no module": r"classes that are not allowed; .* add --allow subprocess.Popen$",
        "a shadowed forward": "attribute 'forward' of the module hides Linear.forward of its class",
        "a shadowed property": "attribute 'all_weights' of the module hides RNNBase.all_weights",
        "a forward hook": "'_forward_hooks' of the module is not empty; save the module without hooks",
        "a state dict hook": "'_state_dict_hooks' of the module is not empty",
        "a load hook": "'_load_state_dict_pre_hooks' of the module is not empty",
        "a function": "'act' of the module is the name torch.hub.load; of functions only the activations",
        "a function of Python": "'act' of the module is the name __builtin__.sum; of functions only",
        "an attribute of dunder": "attribute '__class__' of the module is no name of an attribute",
        "a parameter that is a number": "'weight' of the module is the number 3, not a parameter",
        "a buffer that is a text": "'mean' of the module is a text, not a buffer",
        "a module that is a list": "'sub' of the module is a list, not a module",
        "a parameter named forward": "'forward' of the module hides Linear.forward",
        "a module named forward": "'forward' of the module hides Linear.forward",
        "a name with a dot": "'a.b' of the module is no name of an attribute",
        "a name that is a number": "'3' of the module is no name of an attribute",
        "a name that is there twice": "'weight' of the module is there twice",
        "training that is a text": "'training' of the module is a text, not a bool",
        "parameters that are a list": "'_parameters' of the module is a list, not a dict",
        "no state": "'training' of the module is None, not a bool",
        "weights that do not fit their names": "'_flat_weights_names' of the module does not fit its parameters",
    }.items(),
)
def test_module_with_more_than_data_is_refused(name, reason, tmp_path):
    with pytest.raises(ModelError, match=reason):
        rebuild.module(*opened(bad_models.MODULES[name](tmp_path)), {})


def test_refusal_names_every_class_and_its_flag():
    data = bad_models.saved(nn.Sequential(bad_models.Custom(), WithAttributes()))
    with pytest.raises(ModelError, match=r"add --allow bad_models\.Custom --allow test_rebuild\.WithAttributes$"):
        rebuild.module(*opened(data), {})


def test_refusal_in_a_layer_names_the_layer():
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 2)))
    model[1][0].__dict__["forward"] = nn.functional.relu
    with pytest.raises(ModelError, match=r"attribute 'forward' of layer '1\.0' hides Linear\.forward"):
        rebuilt(model)


@pytest.mark.parametrize("kind", [dict, io.BytesIO, len, "text"])
def test_only_modules_can_be_allowed(kind):
    with pytest.raises(UsageError, match=r"--allow a\.B: it is not a subclass of torch\.nn\.Module"):
        rebuild.module(*opened(bad_models.saved(nn.ReLU())), {"a.B": kind})


def test_allowing_a_class_does_not_import_what_the_file_names():
    data = bad_models.pt_of(b"cantigravity\nFly\n)\x81}b")
    with pytest.raises(ModelError, match=r"--allow antigravity\.Fly"):
        rebuild.module(*opened(data), {})
    assert "antigravity" not in sys.modules


def test_gem_modules_need_no_flag():
    own = pytest.importorskip("gemedge.nn")
    again = rebuilt(nn.Sequential(own.GEM(2), own.EGEM(1, 0.5), own.SEGEM(1)))
    assert [type(layer) for layer in again] == [own.GEM, own.EGEM, own.SEGEM]
    x = torch.linspace(-2, 2, 9)
    assert torch.equal(again(x), nn.Sequential(own.GEM(2), own.EGEM(1, 0.5), own.SEGEM(1))(x))


# State dicts


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model", "net"])
def test_state_dict_comes_through_bit_for_bit(wrapper):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    state = model.state_dict()
    value = state if wrapper is None else {"epoch": 3, "optimizer": {"lr": 0.1, "steps": [1, 2]}, wrapper: state}
    got = rebuild.state_dict(*opened(bad_models.saved(value)))
    assert list(got) == list(state)
    assert all(torch.equal(got[name], state[name]) and got[name].dtype == state[name].dtype for name in state)


def test_special_values_and_shapes_come_through():
    values = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, 3e38])
    state = {"a": values, "b": torch.zeros(3, 0), "c": torch.tensor(True), "d": values.reshape(5, 1).expand(5, 1).t()}
    got = rebuild.state_dict(*opened(bad_models.saved(state)))
    for name, tensor in state.items():
        assert torch.equal(got[name].nan_to_num(7), tensor.nan_to_num(7))
        assert (got[name].shape, got[name].stride()) == (tensor.shape, tensor.stride())


@pytest.mark.parametrize(
    ("name", "reason"),
    {
        "a list": "it holds a list, not a state dict",
        "None": "it holds None, not a state dict",
        "a number": "it holds the number 3, not a state dict",
        "a tensor": "it holds a single tensor, not a state dict",
        "a text": "it holds a text, not a state dict",
        "a function": "it holds the name torch.nn.functional.relu, not a state dict",
        "a module": "it holds an object of class torch.nn.modules.linear.Linear, not a state dict",
        "a number for a tensor": "its entry 'epoch' is the number 3; a state dict has names and tensors only",
        "a tensor without a name": "its entry 1 is a single tensor; a state dict has names and tensors only",
        "two state dicts": "a state dict under each of state_dict, model; save the one that is meant",
    }.items(),
)
def test_what_is_no_state_dict_is_named(name, reason, tmp_path):
    with pytest.raises(ModelError, match=reason):
        rebuild.state_dict(*opened(bad_models.TOPS[name](tmp_path)))


def test_what_is_no_module_is_named():
    with pytest.raises(ModelError, match="it holds a dict, not a module"):
        rebuild.module(*opened(bad_models.good_pt()), {})
