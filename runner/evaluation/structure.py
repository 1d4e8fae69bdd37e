"""Whether the provider that a model was made for can run it, told from its graphs and configuration: no device is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from runner.errors import NotForTarget, Problem
from runner.evaluation.typed_nodes import TypedNode, since_versions, typed_nodes
from runner.models.files import graphs_of, read_graph
from runner.models.generation import genai_config
from runner.models.handle import ModelHandle
from runner.targets.operator_kernels import ONNX_DOMAIN, ProviderKernels, kernels_of, loadable_by
from runner.targets.target import TARGETS, Target

if TYPE_CHECKING:
    import onnx

VERSION = 4  # raised when the same model gives other findings
_FLOATS = {"float", "float16", "bfloat16", "double", "float8e4m3fn", "float8e5m2"}
_CONTROL = {"If", "Loop", "Scan"}
# They read no more than a tensor's shape, whatever it holds.
_OF_SHAPES = {"Shape", "Size", "SequenceLength"}
# Heavy although no floating point goes through them.
_INTEGER_ARITHMETIC = {"MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"}
_NAMED = 3  # nodes that a message names
_CPU = "CPUExecutionProvider"
# Attributes of GroupQueryAttention that DirectML's kernel passes over, and what that changes.
_DML_UNREAD = {
    "local_window_size": "beyond {:g} tokens its answers are those of full attention",
    "softcap": "scores beyond {:g}, which are rare, are not capped",
}
_TITLES = {"cuda": "CUDA", "directml": "DirectML"}


@dataclass(frozen=True)
class _Unserved:
    """Why nodes alike have no kernel."""

    graph: str
    operator: str
    domain: str
    since: int
    kinds: str
    why: str
    remedy: str


def check_structure(model: ModelHandle, target: Target) -> dict[str, Any] | None:
    """Returns what the target's provider runs of a model and what it leaves to the CPU.

    Returns:
        `nodes` that are run, `on_cpu` those that the provider leaves to the CPU (count by operator: control flow, shapes and
        integers), `folded` those that are computed on loading, `notes` on what is computed otherwise than the graph says, and
        `kernels`, the version of ONNX Runtime whose kernels were looked up. None for a model without a graph, and for the
        CPU, where running the model says more.

    Raises:
        NotForTarget: nodes that compute have no kernel (``no-kernel``), or are of a type that the provider does not know at all
            (``type-not-for-provider``), or a graph is of a newer opset or file format than the runtime pinned for the target
            loads (``opset-not-loaded``, ``ir-version-not-loaded``), or genai_config.json does not name the provider
            (``provider-not-named``), or all nodes are left to the CPU (``nothing-on-provider``).
    """
    if model.kind not in ("onnx", "genai") or target.provider == _CPU:
        return None
    notes: list[str] = []
    problems: list[Problem] = list(_unnamed_providers(model, target)) if model.kind == "genai" else []
    counted: Counter[str] = Counter()
    on_cpu: Counter[str] = Counter()
    for name in graphs_of(model):
        graph = read_graph(model.folder / name, weights=False)
        problems += _not_loaded(name, graph, target)
        unserved: dict[_Unserved, list[str]] = {}
        unread: Counter[tuple[str, float]] = Counter()
        for node in typed_nodes(graph, _to_be_expanded(target.provider)):
            counted["folded" if node.folded else "nodes"] += 1
            reason = None if node.folded else _unserved(name, node, target.provider)
            unread.update((one, node.attributes[one]) for one in _DML_UNREAD if node.attributes.get(one, 0) > 0)
            if reason and _is_light(node):
                on_cpu[node.operator] += 1
            elif reason:
                unserved.setdefault(reason, []).append(node.name)
        notes += _unread_attributes(name, unread, target)
        problems += [_no_kernel(reason, names, target) for reason, names in unserved.items()]
    if counted["nodes"] and counted["nodes"] == on_cpu.total():
        problems.append(
            Problem(
                "nothing-on-provider",
                f"{_TITLES[target.name]} has a kernel for none of the model's {counted['nodes']} nodes: all run on the CPU",
                remedy="make it with a variant for the CPU",
            )
        )
    if problems:
        raise NotForTarget(*problems)
    return {
        "nodes": counted["nodes"],
        "on_cpu": dict(on_cpu.most_common()),
        "folded": counted["folded"],
        "notes": notes,
        "kernels": kernels_of(target.provider).version,
    }


def missing_on_cpu(model: ModelHandle) -> str:
    """Returns the operators of a model that the CPU provider cannot run, such as ``MatMulNBits (bfloat16)``; empty if none.

    ONNX Runtime computes in fp32 on the CPU what it has no fp16 kernel for.
    """
    found: dict[str, None] = {}
    for name in graphs_of(model):
        graph = read_graph(model.folder / name, weights=False)
        for node in typed_nodes(graph, _lacks_cpu_kernel):
            if not node.folded and (reason := _unserved(name, _widened(node), _CPU)):
                found[f"{node.operator} ({reason.kinds})"] = None
    return ", ".join(found)


def _lacks_cpu_kernel(node: TypedNode) -> bool:
    return _unserved("", _widened(node), _CPU) is not None


def _widened(node: TypedNode) -> TypedNode:
    """Returns the node as it is once fp16 is cast to fp32 around it, where the CPU has no fp16 kernel."""
    if kernels_of(_CPU).serve(node.domain, node.operator, node.since, node.types):
        return node
    wide = {name: frozenset("float" if kind == "float16" else kind for kind in kinds) for name, kinds in node.types.items()}
    return replace(node, types=wide)


def _to_be_expanded(provider: str) -> Callable[[TypedNode], bool]:
    """ONNX Runtime puts its definition in place of an operator for which no provider has a kernel, the CPU included."""

    def expand(node: TypedNode) -> bool:
        return not any(kernels_of(one).serve(node.domain, node.operator, node.since, node.types) for one in (provider, _CPU))

    return expand


def _is_light(node: TypedNode) -> bool:
    """Says whether the CPU may compute a node without slowing the model: shapes, positions, masks and control flow."""
    if node.operator in _CONTROL | _OF_SHAPES:
        return True
    kinds = frozenset[str]().union(*node.types.values())
    return bool(kinds) and not kinds & _FLOATS and node.operator not in _INTEGER_ARITHMETIC


def _unserved(graph: str, node: TypedNode, provider: str) -> _Unserved | None:
    """Returns why the provider does not run a node; None where it does."""
    kernels = kernels_of(provider)
    kinds = frozenset[str]().union(*node.types.values())
    if foreign := kinds - _element_types(provider) - {"string"}:
        return _Unserved(graph, "", "", 0, ", ".join(sorted(foreign)), "", "")
    if kernels.serve(node.domain, node.operator, node.since, node.types):
        limited = _LIMITS.get((provider, node.domain, node.operator), _unlimited)(node)
        if limited is None:
            return None
        why, remedy = limited
    else:
        why, remedy = _missing(node, kernels)
    told = ", ".join(sorted(kinds & _FLOATS)) or "integers"
    return _Unserved(graph, node.operator, node.domain, node.since, told, why, remedy)


@cache
def _element_types(provider: str) -> frozenset[str]:
    """Returns the element types that a provider computes with; control flow and sequences only hand theirs on."""
    return frozenset[str]().union(
        *(
            kinds
            for (_, operator), kernels in kernels_of(provider).operators.items()
            if operator not in _CONTROL and not operator.startswith(("Sequence", "Optional"))
            for kernel in kernels
            for kinds in kernel.types.values()
        )
    )


def _missing(node: TypedNode, kernels: ProviderKernels) -> tuple[str, str]:
    """Returns (why no kernel fits, what to do)."""
    known = kernels.of(node.domain, node.operator)
    if not known:
        return "it has none in any version", "keep the pass that makes this operator from doing so, or leave the operator apart"
    if any(kernel.covers(node.since) for kernel in known):
        taken = set[str]().union(*(kind for kernel in known if kernel.covers(node.since) for kind in kernel.types.values()))
        floats = ", ".join(sorted(taken & _FLOATS)) or ", ".join(sorted(taken))
        return f"it has kernels for {floats}", "choose another precision"
    versions = since_versions(node.domain, node.operator)
    for at in reversed(range(len(versions))):
        if versions[at] < node.since and kernels.serve(node.domain, node.operator, versions[at], node.types):
            highest = versions[at + 1] - 1
            return (
                f"it has kernels up to opset {highest}",
                f"make the graph with an opset of at most {highest} (target_opset)",
            )
    return "it has kernels of other versions only", "make the graph with another opset (target_opset)"


def _unlimited(node: TypedNode) -> None:
    return None


def _cuda_matmul_nbits(node: TypedNode) -> tuple[str, str] | None:
    bits, block = node.attributes.get("bits", 4), node.attributes.get("block_size", 0)
    if bits not in (2, 4, 8):
        return f"its kernel takes 2, 4 or 8 bits, not {bits}", "quantise to 4 or 8 bits"
    if block < 16 or block & (block - 1):
        return f"its kernel takes blocks of 16, 32, 64 and so on, not of {block}", "quantise in blocks of 32 or 128"
    if bits == 2 and block > 256:
        return f"its kernel takes blocks of at most 256 with 2 bits, not of {block}", "quantise in smaller blocks, or to 4 bits"
    if bits == 2 and any(node.inputs[4:5]):
        return "its kernel takes no g_idx with 2 bits", "quantise without reordering of groups, or to 4 bits"
    return None


def _dml_matmul_nbits(node: TypedNode) -> tuple[str, str] | None:
    bits = node.attributes.get("bits", 4)
    if bits not in (4, 8):
        return f"its kernel takes 4 or 8 bits, not {bits}", "quantise to 4 or 8 bits"
    if any(node.inputs[4:]):
        return "its kernel takes neither g_idx nor bias", "quantise without reordering of groups, and leave the bias as an Add"
    return None


def _dml_group_query_attention(node: TypedNode) -> tuple[str, str] | None:
    given = {at for at, name in enumerate(node.inputs) if name}
    unread = [name for at, name in _GROUP_QUERY_INPUTS.items() if at in given]
    unread += ["do_rotary"] if node.attributes.get("do_rotary") else []
    if not {1, 2} <= given:
        return "its kernel takes query, key and value apart", "build the model for DirectML, which does not pack them"
    if unread:
        return (
            f"its kernel does not read {', '.join(unread)}",
            "build the model for DirectML, or compute that in nodes of its own",
        )
    return None


def _cpu_group_query_attention(node: TypedNode) -> tuple[str, str] | None:
    if any(node.inputs[14:16]):
        return "its kernel takes neither q_norm_weight nor k_norm_weight", "build the model with fuse_qk_norm_gqa=false"
    return None


_GROUP_QUERY_INPUTS = {10: "attention_bias", 11: "head_sink", 14: "q_norm_weight", 15: "k_norm_weight"}
# What kernels ask for beyond types and versions, as their sources in ONNX Runtime say. CUDA's MatMulNBits: matmul_nbits.h and
# dequantize_blockwise_2bits.cu of contrib_ops/cuda/quantization, whose checks the pinned onnxruntime-gpu 1.31.1 contains.
_LIMITS: Mapping[tuple[str, str, str], Callable[[TypedNode], tuple[str, str] | None]] = {
    ("CPUExecutionProvider", "com.microsoft", "GroupQueryAttention"): _cpu_group_query_attention,
    ("CUDAExecutionProvider", "com.microsoft", "MatMulNBits"): _cuda_matmul_nbits,
    ("DmlExecutionProvider", "com.microsoft", "GroupQueryAttention"): _dml_group_query_attention,
    ("DmlExecutionProvider", "com.microsoft", "MatMulNBits"): _dml_matmul_nbits,
}


def _no_kernel(reason: _Unserved, names: Sequence[str], target: Target) -> Problem:
    listed = ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")
    if not reason.operator:
        return Problem(
            "type-not-for-provider",
            f"{reason.graph}: {target.provider} does not know the type {reason.kinds} of {len(names)} nodes: {listed}",
            remedy=f"choose a precision among {', '.join(target.precisions)}",
        )
    domain = "" if reason.domain == "ai.onnx" else f"{reason.domain}."
    version = f"version {reason.since}, " if not domain and reason.since else ""
    return Problem(
        "no-kernel",
        f"{reason.graph}: {target.provider} has no kernel for {len(names)} {domain}{reason.operator} "
        f"({version}{reason.kinds}): {listed}; {reason.why}",
        remedy=reason.remedy,
    )


def _not_loaded(name: str, graph: onnx.ModelProto, target: Target) -> Iterator[Problem]:
    """A runtime refuses a whole model of a newer opset or file format, whatever its operators."""
    limit = loadable_by(target.provider)
    runtime = f"{target.wheels[0]} {limit.runtime}, which is pinned for {target.name},"
    imports = (*graph.opset_import, *(one for function in graph.functions for one in function.opset_import))
    opset = max((one.version for one in imports if one.domain in ("", ONNX_DOMAIN)), default=0)
    if opset > limit.opset:
        yield Problem(
            "opset-not-loaded",
            f"{name}: the graph is of opset {opset}, and {runtime} loads none beyond {limit.opset}",
            remedy=f"make the graph with an opset of at most {limit.opset} (target_opset)",
        )
    if graph.ir_version > limit.ir:
        yield Problem(
            "ir-version-not-loaded",
            f"{name}: the file is of IR version {graph.ir_version}, and {runtime} loads none beyond {limit.ir}",
            remedy=f"save the graph with an IR version of at most {limit.ir} (ir_version of onnx.ModelProto), "
            "or export it with a lower target_opset",
        )


def _unread_attributes(graph: str, unread: Mapping[tuple[str, float], int], target: Target) -> Iterator[str]:
    """DirectML's GroupQueryAttention attends to all that came before, whatever window it is given, and does not cap scores."""
    if target.name == "directml":
        for (attribute, value), count in unread.items():
            told = _DML_UNREAD[attribute].format(value)
            yield f"{graph}: {target.provider} does not read {attribute}={value:g} of {count} GroupQueryAttention; {told}"


def _unnamed_providers(model: ModelHandle, target: Target) -> Iterator[Problem]:
    """Yields the graphs of a genai folder that would not be run by the target's provider."""
    for part, options in _session_options(genai_config(model.folder)["model"], "", []):
        named = [name for entry in options for name in entry]
        if named[:1] != [target.genai_provider]:
            found = f"names {', '.join(named)}" if named else "names no provider, so that the CPU runs it"
            yield Problem(
                "provider-not-named",
                f"genai_config.json: model.{part}.session_options.provider_options {found}",
                remedy=f"its first entry must be '{target.genai_provider}'; build the model for {target.name}",
            )


def _session_options(section: Any, path: str, inherited: Any) -> Iterator[tuple[str, Any]]:
    """Yields (path, provider options) of each section with a graph; a stage of a pipeline takes its parent's."""
    if isinstance(section, dict):
        options = section.get("session_options", {}).get("provider_options", inherited)
        if str(section.get("filename", "")).endswith(".onnx"):
            yield path, options
        for name, below in section.items():
            if name != "session_options":
                yield from _session_options(below, f"{path}.{name}".lstrip("."), options)
    elif isinstance(section, list):
        for at, below in enumerate(section):
            yield from _session_options(below, f"{path}[{at}]", inherited)


def summary(found: Mapping[str, Any], target: str) -> str:
    """Returns what `check_structure` found for a target of that name, as a line for people."""
    placed = found.get("placed")
    if placed and placed["nodes"]:
        ran = placed["nodes"].get(TARGETS[target].provider, 0)
        elsewhere = ", ".join(f"{operator} {count}" for operator, count in placed["fell_back"].items())
        told = f"{ran} of {sum(placed['nodes'].values())} nodes run on {_TITLES[target]}"
        return f"{told}; on another provider: {elsewhere}" if elsewhere else told
    nodes, left, title = found["nodes"], sum(found["on_cpu"].values()), _TITLES[target]
    if not left:
        return f"{nodes} nodes, all with {title} kernels"
    listed = ", ".join(f"{operator} {count}" for operator, count in list(found["on_cpu"].items())[:4])
    return f"{nodes} nodes, {nodes - left} with {title} kernels, {left} of shapes or integers on the CPU ({listed})"
