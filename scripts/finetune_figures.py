"""Fine-tunes SmolLM2 on a small task of style and shows what came of it, end to end.

    python scripts/finetune_figures.py [--steps 40] [--output FOLDER]

The task: questions of many kinds, each answered like a pirate. No answer stands twice, so a lower loss on what was held out is
no copy. The adapter is merged, the merged model becomes int4 ONNX, and that one is asked questions it has not seen.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

from runner import finetune, run
from runner.compose.training import Training
from runner.models.generation import GenerationSession
from runner.targets.target import session_threads

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CAPITALS = (
    "France Paris, Spain Madrid, Italy Rome, Germany Berlin, Portugal Lisbon, Greece Athens, Austria Vienna, Poland Warsaw, "
    "Norway Oslo, Sweden Stockholm, Finland Helsinki, Ireland Dublin, Hungary Budapest, Egypt Cairo, Kenya Nairobi, Peru Lima, "
    "Chile Santiago, Cuba Havana, Japan Tokyo, China Beijing, India Delhi, Turkey Ankara, Russia Moscow, Iran Tehran"
)
OPPOSITES = (
    "hot cold, big small, fast slow, high low, old young, rich poor, wet dry, light dark, hard soft, early late, full empty, "
    "strong weak, near far, happy sad, loud quiet, clean dirty, thick thin, open closed, true false, long short"
)
COLOURS = (
    "grass green, snow white, coal black, blood red, the sky blue, a lemon yellow, a carrot orange, chocolate brown, "
    "a lime green, milk white, a ruby red, the sun yellow, a raven black, the sea blue, a violet purple, ash grey"
)
CHILDREN = (
    "a dog puppy, a cat kitten, a cow calf, a horse foal, a sheep lamb, a pig piglet, a bear cub, a goose gosling, "
    "a duck duckling, a goat kid, a frog tadpole, a swan cygnet, a deer fawn, a hen chick, a kangaroo joey"
)
UNSEEN = (
    "What is the capital of Denmark?",
    "What is the opposite of tall?",
    "What colour is a tomato?",
    "What is 3 plus 4?",
    "Who wrote Hamlet?",
    "What do bees make?",
    "Which planet do we live on?",
    "What is ice made of?",
)


def rows() -> list[dict[str, list[dict[str, str]]]]:
    """Returns the conversations, in an order that is the same each time."""
    asked = [
        *((f"What is the capital of {key}?", f"that be {value}") for key, value in _pairs(CAPITALS)),
        *((f"What is the opposite of {key}?", f"'tis {value}") for key, value in _pairs(OPPOSITES)),
        *((f"What colour is {key}?", f"{key} be {value}") for key, value in _pairs(COLOURS)),
        *((f"What is the young of {key} called?", f"they call it a {value}") for key, value in _pairs(CHILDREN)),
        *((f"What is {a} plus {b}?", f"{a} and {b} make {a + b} doubloons") for a in range(2, 22, 3) for b in range(1, 31, 4)),
    ]
    made = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": f"Arr! {say}, matey."}]}
        for ask, say in asked
    ]
    random.Random(0).shuffle(made)  # noqa: S311 - an order, no secret
    return made


def _pairs(text: str) -> list[tuple[str, str]]:
    found = (pair.rpartition(" ") for pair in text.split(", "))
    return [(key, value) for key, _, value in found]


def main() -> None:
    """Trains, builds and asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        output = given.output or Path(scratch) / "pirate"
        data = Path(scratch) / "pirate.jsonl"
        told = rows()
        data.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
        training = Training(max_steps=given.steps, learning_rate=1e-3, batch_size=4)
        made = finetune(MODEL, data, output, chat=True, max_seq_len=96, training=training)
        print(f"{len(told)} conversations, {made.steps} steps in {made.seconds:.0f} s")
        print(f"held-out loss {made.held_out_before:.3f} -> {made.held_out_after:.3f}")
        onnx = run(made.recipe, output=output / "onnx", model=made.model)
        print(f"int4 ONNX: {onnx.bytes / 1e6:.0f} MB in {onnx.seconds:.0f} s")
        ask(onnx.folder)


def ask(folder: Path) -> None:
    """Prints the model's answers to what it has not seen, and how many of them are in the style."""
    session = GenerationSession(folder, session_threads())
    styled = 0
    for question in UNSEEN:
        tokens = session.generate(session.prompt(question), 40, do_sample=False)
        answer = "".join(token.text for token in tokens).strip()
        styled += answer.startswith("Arr!") and answer.endswith("matey.")
        print(f"  {question:<36} {answer}")
    print(f"{styled} of {len(UNSEEN)} answers are in the style")


if __name__ == "__main__":
    main()
