"""What a run tells when it is done: steps with their figures, metrics, and where things lie."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from runner.engine.run import Outcome

# What is said of a component, see `runner.engine.parts.Told`.
_COMPONENT = {"made": "", "stored": "from the store", "left": "left as it is"}


def show_outcome(outcome: Outcome) -> None:
    """Prints what came of a run: steps with time, size and distance from the source; metrics; where things lie."""
    plan = outcome.plan
    console = Console()
    console.print(
        f"[bold]{plan.request.name}[/] on {plan.target.name}, from {outcome.receipt['model']['from']}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("step", header_style="dim")
    table.add_column("pass", header_style="dim")
    for column in ("seconds", "MB", "cosine", "max diff", "top-1"):
        table.add_column(column, header_style="dim", justify="right")
    states = {step.name: step.state if step.state != "to do" else "cached" for step in plan.steps}  # by another run meanwhile
    for told in outcome.receipt["steps"]:
        name = told["step"]
        seconds = f"{told['seconds']:.1f}" if name in outcome.made and "seconds" in told else states.get(name, "")
        size = f"{told['bytes'] / 1e6:.1f}" if "bytes" in told else ""
        table.add_row(told["step"], told["pass"], seconds, size, *_parity(told.get("parity")))
        if name in outcome.made:
            for component, part in told.get("components", {}).items():
                table.add_row(f"  {component}", f"  {_COMPONENT[part['state']]}", *_component_figures(part))
    console.print(table)
    for told in outcome.receipt["steps"]:
        if why := (told.get("parity") or {}).get("reason"):
            text = f"{told['step']}: not compared with the source: {why}"
            console.print(f"[yellow]note[/] {text}", highlight=False, soft_wrap=True)
        if picture := (told.get("parity") or {}).get("picture"):
            height, width = picture["pixels"]
            drawn = f"a picture of {width} x {height} pixels after {picture['steps']} steps"
            console.print(
                f"{told['step']}: {picture['psnr_db']:.1f} dB PSNR to the source, {drawn}", highlight=False, soft_wrap=True
            )
    if written := (outcome.receipt["steps"][-1].get("parity") or {}).get("generated"):
        console.print(f"generation: {written} tokens written by onnxruntime-genai", highlight=False, soft_wrap=True)
    if structure := outcome.receipt.get("structure"):
        from runner.evaluation.structure import summary

        console.print(f"structure: {summary(structure, plan.target.name)}", highlight=False, soft_wrap=True)
        for note in structure["notes"]:
            console.print(f"[yellow]note[/] {note}", highlight=False, soft_wrap=True)
    for metric in outcome.receipt["metrics"]:
        note = f"  [dim]({metric['note']})[/]" if metric["note"] else ""
        console.print(f"{metric['name']}: {metric['value']:.4g} {metric['unit']}{note}", highlight=False, soft_wrap=True)
    for note in outcome.receipt["notes"]:
        if note in plan.notes:
            continue  # told when the run began
        console.print(f"[yellow]note[/] {note}", highlight=False, soft_wrap=True)
    state = "ready" if outcome.log else "written from the store" if outcome.written else "up to date"
    console.print(
        f"model    {plan.output}  ({_size(outcome.receipt)}, {state}, {outcome.seconds:.1f} s)", highlight=False, soft_wrap=True
    )
    console.print(f"receipt  {plan.output / 'receipt.json'}", highlight=False, soft_wrap=True)
    if outcome.log is not None:
        console.print(f"log      {outcome.log}", highlight=False, soft_wrap=True)


def _component_figures(part: dict[str, Any]) -> tuple[str, str]:
    return f"{part['seconds']:.1f}" if part["state"] == "made" else "", f"{part['bytes'] / 1e6:.1f}"


def _size(receipt: dict[str, Any]) -> str:
    return f"{sum(known['size'] for known in receipt['files'].values()) / 1e6:.1f} MB"


def _parity(parity: dict[str, Any] | None) -> tuple[str, str, str]:
    """The worst output decides: lowest cosine, largest difference, lowest agreement."""
    outputs = list((parity or {}).get("outputs", {}).values())
    if not outputs:
        return "", "", ""
    agreement = [one["top1_agreement"] for one in outputs if one.get("top1_agreement") is not None]
    return (
        f"{min(one['cosine'] for one in outputs):.5f}",
        f"{max(one['max_abs_diff'] for one in outputs):.2g}",
        f"{min(agreement):.0%}" if agreement else "",
    )
