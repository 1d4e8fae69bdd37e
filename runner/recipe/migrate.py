"""Turns older forms of Olive's configuration into the current one.

Nodes are moved, never copied out of their file, so that an error still points at the line that was written. Whatever no
longer acts is taken out and leaves a note that says so; what nobody ever knew is left for validation to refuse.
"""

from __future__ import annotations

from collections.abc import Callable

from runner.recipe.document import Node

RETIRED_TOP_LEVEL = {
    "clean_cache": "use --no-cache",
    "clean_evaluation_cache": "use --no-cache",
    "cache_config": "the store has one layout; use cache_dir",
    "plot_pareto_frontier": "searches always report their Pareto front",
    "packaging_config": "the output folder is the package",
    "ort_py_log_severity_level": "logs of ONNX Runtime follow ort_log_severity_level",
    "log_to_file": "the log is always kept in a file",
    "azureml_client": "runs are local",
    "workflow_id": "runs are named by their recipe",
    "execution_providers": "the target's accelerators name the execution provider",
    "auto_optimizer_config": "name the passes",
}

MODEL_TYPES = {
    "hfmodel": "HfModel",
    "huggingfacemodel": "HfModel",
    "pytorchmodel": "PyTorchModel",
    "onnxmodel": "ONNXModel",
    "diffusersmodel": "DiffusersModel",
}

SYSTEM_TYPES = {
    "localsystem": "LocalSystem",
    "local": "LocalSystem",
    "pythonenvironment": "PythonEnvironment",
    "docker": "Docker",
    "azureml": "AzureML",
    "isolatedort": "IsolatedORT",
}

EXECUTION_PROVIDERS = (
    "CPUExecutionProvider", "CUDAExecutionProvider", "DmlExecutionProvider", "TensorrtExecutionProvider",
    "NvTensorRTRTXExecutionProvider", "OpenVINOExecutionProvider", "QNNExecutionProvider", "VitisAIExecutionProvider",
    "WebGpuExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider", "CoreMLExecutionProvider",
    "XnnpackExecutionProvider", "JsExecutionProvider",
)  # fmt: skip
_PROVIDERS = {name.lower(): name for name in EXECUTION_PROVIDERS}
_PROVIDERS |= {name.removesuffix("executionprovider"): full for name, full in list(_PROVIDERS.items())}
_PROVIDERS["directml"] = "DmlExecutionProvider"

RETIRED_SEARCH = {
    "clean_search_cache": "use --no-cache",
}

_SEARCH_SPELLINGS = {
    "search_algorithm": "sampler",
    "stop_when_goals_are_met": "stop_when_goals_met",
    "num_samples": "max_samples",
}
_LEVELS = {"joint": "joint", "pass-by-pass": "pass-by-pass", "pass_by_pass": "pass-by-pass"}


def migrate(root: Node) -> tuple[Node, tuple[str, ...]]:
    """Returns the document in the current form, and a note for each thing that was read but does nothing any more."""
    notes: list[str] = []
    for rewrite in (
        _engine, _retired, _input_model, _systems, _data_configs, _metrics, _evaluators, _search, _pass_list, _pass_flows,
        _passes,
    ):  # fmt: skip
        root = rewrite(root, notes)
    return root, tuple(notes)


def _note(notes: list[str], node: Node, what: str, why: str) -> None:
    notes.append(f"{node.origin}: '{what}' does nothing here: {why}")


def _unnest(node: Node, key: str = "config") -> Node:
    """Lays the members of the old `config` mapping beside their siblings; a sibling of the same name wins."""
    inner = node.members.get(key)
    if inner is None or not isinstance(inner.value, dict):
        return node
    return Node({**inner.value, **{name: child for name, child in node.members.items() if name != key}}, node.origin)


def _rename(node: Node, old: str, new: str) -> Node:
    if old not in node.members or new in node.members:
        return node
    return Node({new if key == old else key: child for key, child in node.members.items()}, node.origin)


def _replace_text(node: Node, key: str, known: dict[str, str]) -> Node:
    """Spells a text member as we do; an unknown spelling is left for validation."""
    child = node.members.get(key)
    if child is None or not isinstance(child.value, str) or child.value.lower() not in known:
        return node
    return node.with_members(**{key: Node(known[child.value.lower()], child.origin)})


def _map_members(node: Node, change: Callable[[Node], Node]) -> Node:
    return Node({key: change(child) for key, child in node.members.items()}, node.origin)


def _map_items(node: Node, change: Callable[[Node], Node]) -> Node:
    return Node([change(child) for child in node.items], node.origin)


def _retire(node: Node, retired: dict[str, str], notes: list[str]) -> Node:
    for key, why in retired.items():
        if key in node.members:
            _note(notes, node.members[key], key, why)
            node = node.with_members(**{key: None})
    return node


def _engine(root: Node, notes: list[str]) -> Node:
    """`engine: {...}` of older files: its members stand at the top level now."""
    engine = root.members.get("engine")
    if engine is None or not isinstance(engine.value, dict):
        return root
    kept = {key: node for key, node in root.members.items() if key != "engine"}
    return Node({**_unnest(engine).members, **kept}, root.origin)


def _retired(root: Node, notes: list[str]) -> Node:
    return _retire(root, RETIRED_TOP_LEVEL, notes)


def _input_model(root: Node, notes: list[str]) -> Node:
    model = root.members.get("input_model")
    if model is None or not isinstance(model.value, dict):
        return root
    model = _model_reference(_replace_text(_unnest(model), "type", MODEL_TYPES), notes)
    hf_config = model.members.get("hf_config")
    if hf_config is not None and isinstance(hf_config.value, dict):
        model = _from_hf_config(model.with_members(hf_config=None), hf_config, notes)
    load_kwargs = model.members.get("load_kwargs")
    if load_kwargs is not None:
        model = model.with_members(load_kwargs=_unnest(load_kwargs, "extra_args"))
    trust = model.members.get("trust_remote_code")
    if trust is not None:
        model = _into_load_kwargs(model.with_members(trust_remote_code=None), {"trust_remote_code": trust})
    return root.with_members(input_model=_retire(model, {"is_file": "the path tells", "is_aml_model": "runs are local"}, notes))


# Azure ML's registries write a hub id with a hyphen in place of the slash.
_OWNERS = (
    "microsoft", "meta-llama", "mistralai", "google", "openai", "facebook", "intel", "nvidia", "qwen", "deepseek-ai",
    "huggingface", "stabilityai", "databricks", "ibm-granite", "distilbert", "sentence-transformers",
)  # fmt: skip


def _model_reference(model: Node, notes: list[str]) -> Node:
    """`model_path` as a mapping: a local path, a hub id, or a model of an Azure ML workspace or registry."""
    written = model.members.get("model_path")
    if written is None or not isinstance(written.value, dict):
        return model
    reference = _unnest(written).members
    kind = str(reference["type"].value) if "type" in reference else ""
    named = next((reference[key] for key in ("path", "name") if key in reference), None)
    if named is None or not isinstance(named.value, str):
        return model
    if "azureml" not in kind:
        return model.with_members(model_path=named)
    owner = next((known for known in _OWNERS if named.value.lower().startswith(f"{known}-")), None)
    name = f"{owner}/{named.value[len(owner) + 1 :]}" if owner else named.value
    notes.append(f"{written.origin}: the model '{named.value}' of Azure ML is looked up as '{name}' on the hub")
    return model.with_members(model_path=Node(name, named.origin))


def _from_hf_config(model: Node, hf_config: Node, notes: list[str]) -> Node:
    """`PyTorchModel` with `hf_config`: what is an `HfModel` today."""
    hf = dict(hf_config.members)
    changes: dict[str, Node | None] = {}
    name = hf.pop("model_name", None)
    if name is not None and "model_path" not in model.members:
        changes["model_path"] = name
    if (task := hf.pop("task", None)) is not None:
        changes["task"] = task
    if "model_script" not in model.members:
        changes["type"] = Node("HfModel", model.members["type"].origin if "type" in model.members else hf_config.origin)
    load = {}
    if (args := hf.pop("from_pretrained_args", None)) is not None:
        load.update(_unnest(args, "extra_args").members)
    if (trust := hf.pop("trust_remote_code", None)) is not None:
        load["trust_remote_code"] = trust
    for key, why in {
        "feature": "the task says it",
        "components": "a model of several parts lists its component configs",
        "dataset": "data_configs says where data comes from",
        "model_class": "the architecture in config.json says it",
    }.items():
        if key in hf:
            _note(notes, hf.pop(key), key, why)
    changes.update(hf)
    return _into_load_kwargs(model.with_members(**changes), load)


def _into_load_kwargs(model: Node, added: dict[str, Node]) -> Node:
    if not added:
        return model
    known = model.members.get("load_kwargs", Node({}, model.origin))
    return model.with_members(load_kwargs=Node({**added, **known.members}, known.origin))


def _system(node: Node) -> Node:
    if not isinstance(node.value, dict):
        return node
    node = _replace_text(_unnest(node), "type", SYSTEM_TYPES)
    accelerators = node.members.get("accelerators")
    if accelerators is None:
        return node
    if isinstance(accelerators.value, dict):
        accelerators = Node([accelerators], accelerators.origin)
    return node.with_members(accelerators=_map_items(accelerators, _accelerator))


def _accelerator(node: Node) -> Node:
    if isinstance(node.value, str):
        node = Node({"device": node}, node.origin)
    for old, new in (("devices", "device"), ("eps", "execution_providers"), ("ep", "execution_providers")):
        node = _rename(node, old, new)
    device = node.members.get("device")
    if device is not None and isinstance(device.value, list) and len(device.value) == 1:
        device = device.value[0]
    if device is not None and isinstance(device.value, str):
        node = node.with_members(device=Node(device.value.lower(), device.origin))
    providers = node.members.get("execution_providers")
    if providers is None:
        return node
    listed = providers.items if isinstance(providers.value, list) else [providers]
    spelled = [
        Node(_PROVIDERS.get(item.value.lower(), item.value) if isinstance(item.value, str) else item.value, item.origin)
        for item in listed
    ]
    return node.with_members(execution_providers=Node(list(spelled), providers.origin))


def _systems(root: Node, notes: list[str]) -> Node:
    changes: dict[str, Node | None] = {}
    if "systems" in root.members:
        changes["systems"] = _map_members(root.members["systems"], _system)
    for key in ("host", "target"):
        if key in root.members:
            changes[key] = _system(root.members[key])
    return root.with_members(**changes)


def _data_config(node: Node, notes: list[str]) -> Node:
    node = _unnest(node, "params_config")
    components = node.members.get("components")
    if components is not None:
        renamed = {
            "load_dataset": "load_dataset_config",
            "pre_process_data": "pre_process_data_config",
            "post_process_data": "post_process_data_config",
            "dataloader": "dataloader_config",
        }
        node = Node(
            {
                **{key: child for key, child in node.members.items() if key != "components"},
                **{renamed.get(key, key): child for key, child in components.members.items()},
            },
            node.origin,
        )
    return node


def _data_configs(root: Node, notes: list[str]) -> Node:
    data = root.members.get("data_configs")
    if data is None:
        return root
    if isinstance(data.value, dict):
        named = [
            child if "name" in child.members else child.with_members(name=Node(name, child.origin))
            for name, child in data.value.items()
        ]
        data = Node(list(named), data.origin)
    return root.with_members(data_configs=_map_items(data, lambda node: _data_config(node, notes)))


def _metrics(root: Node, notes: list[str]) -> Node:
    """`metrics` at the top level: evaluators name them; where there is no evaluator, they are the run's."""
    listed = root.members.get("metrics")
    if listed is None or not isinstance(listed.value, (dict, list)):
        return root
    metrics = {
        name: metric if "name" in metric.members else metric.with_members(name=Node(name, metric.origin))
        for name, metric in listed.members.items()
    }
    metrics |= {str(metric.members["name"].value): metric for metric in listed.items if "name" in metric.members}
    root = root.with_members(metrics=None)
    evaluators = root.members.get("evaluators")
    if evaluators is None:
        found = Node(
            {"evaluator": Node({"metrics": Node(list(metrics.values()), listed.origin)}, listed.origin)}, listed.origin
        )
        return root.with_members(evaluators=found, evaluator=root.members.get("evaluator") or Node("evaluator", listed.origin))
    return root.with_members(evaluators=_map_members(evaluators, lambda node: _named_metrics(node, metrics)))


def _named_metrics(evaluator: Node, known: dict[str, Node]) -> Node:
    """Puts the metrics in the places where an evaluator names them; an unknown name is left for validation."""
    written = evaluator.members.get("metrics")
    if written is None:
        return evaluator
    named = written.items if isinstance(written.value, list) else [written]
    return evaluator.with_members(metrics=Node([known.get(str(one.value), one) for one in named], written.origin))


def _evaluator(node: Node, notes: list[str]) -> Node:
    metrics = node.members.get("metrics")
    if metrics is None or not isinstance(metrics.value, list):
        return node

    def one(metric: Node) -> Node:
        sub_types = metric.members.get("sub_types")
        if sub_types is not None:
            sub_types = _map_items(
                sub_types, lambda sub: Node({"name": sub}, sub.origin) if isinstance(sub.value, str) else sub
            )
        metric = metric.with_members(sub_types=sub_types)
        return _retire(metric, {"priority_rank": "sub_types carry their priority"}, notes)

    return node.with_members(metrics=_map_items(metrics, one))


def _evaluators(root: Node, notes: list[str]) -> Node:
    changes: dict[str, Node | None] = {}
    evaluators = root.members.get("evaluators")
    if evaluators is not None:
        changes["evaluators"] = _map_members(evaluators, lambda node: _evaluator(node, notes))
    inline = root.members.get("evaluator")
    if inline is not None and isinstance(inline.value, dict):
        held = changes.get("evaluators") or Node({}, inline.origin)
        changes["evaluators"] = held.with_members(evaluator=_evaluator(inline, notes))
        changes["evaluator"] = Node("evaluator", inline.origin)
    return root.with_members(**changes)


def _search(root: Node, notes: list[str]) -> Node:
    search = root.members.get("search_strategy")
    if search is None or not isinstance(search.value, dict):
        return root
    for key in ("search_algorithm_config", "sampler_config"):
        search = _unnest(search, key)
    for old, new in _SEARCH_SPELLINGS.items():
        search = _rename(search, old, new)
    search = _replace_text(search, "execution_order", _LEVELS)
    samplers = {"exhaustive": "sequential", "sequential": "sequential", "random": "random", "tpe": "tpe"}
    search = _replace_text(search, "sampler", samplers)
    return root.with_members(search_strategy=_retire(search, RETIRED_SEARCH, notes))


PASS_LEVEL = ("type", "host", "evaluator", "components")
RETIRED_PASS_LEVEL = {
    "disable_search": "nothing is searched unless an option lists several values",
    "clean_run_cache": "use --no-cache",
    "output_name": "steps are named by their key",
    "user_script_needed": "the options tell",
}


def _pass_list(root: Node, notes: list[str]) -> Node:
    """`passes` as a list: the steps in order, each called by its `name` or its pass."""
    passes = root.members.get("passes")
    if passes is None or not isinstance(passes.value, list):
        return root
    named: dict[str, Node] = {}
    for node in passes.items:
        given = node.members.get("name") or node.members.get("type")
        name = str(given.value) if given is not None else "step"
        while name in named:
            name += "_"
        named[name] = node.with_members(name=None)
    return root.with_members(passes=Node(named, passes.origin))


def _pass_flows(root: Node, notes: list[str]) -> Node:
    """`pass_flows`: orders in which to apply the passes. The first is run."""
    flows = root.members.get("pass_flows")
    passes = root.members.get("passes")
    if flows is None or passes is None or not flows.items:
        return root.with_members(pass_flows=None)
    first = [str(node.value) for node in flows.items[0].items]
    if len(flows.items) > 1:
        notes.append(f"{flows.origin}: the first of {len(flows.items)} pass_flows is run: {' > '.join(first)}")
    if any(name not in passes.members for name in first):
        return root  # validation says that it does not know pass_flows, at its line
    steps = {name: passes.members[name] for name in first}
    return root.with_members(pass_flows=None, passes=Node(steps, passes.origin))


def _named_components(given: Node) -> Node:
    """A list of components as the mapping that it stands for, so that overrides can name one of them."""
    if not isinstance(given.value, list) or not all(isinstance(one.value, str) for one in given.items):
        return given
    named = {str(one.value): Node({}, one.origin) for one in given.items}
    return Node({"*": Node(False, given.origin), **named}, given.origin)


def _passes(root: Node, notes: list[str]) -> Node:
    passes = root.members.get("passes")
    if passes is None or not isinstance(passes.value, dict):
        return root
    return root.with_members(passes=_map_members(passes, lambda step: migrate_step(step, notes)))


def migrate_step(node: Node, notes: list[str]) -> Node:
    """Returns a step of `passes`, or the list of those that it chooses from, with its options in a mapping of their own."""
    if isinstance(node.value, list) and len(node.value) == 1:
        node = node.value[0]
    if isinstance(node.value, list):
        return _map_items(node, lambda one: migrate_step(one, notes))
    if not isinstance(node.value, dict):
        return node
    node = _retire(_unnest(node), RETIRED_PASS_LEVEL, notes)
    written = {key: child for key, child in node.members.items() if child.value != "DEFAULT_VALUE"}
    options = {key: child for key, child in written.items() if key not in PASS_LEVEL}
    kept: dict[str, Node] = {key: child for key, child in node.members.items() if key in PASS_LEVEL}
    if "components" in kept:
        kept["components"] = _named_components(kept["components"])
    return Node({**kept, "options": Node(options, node.origin)}, node.origin)
