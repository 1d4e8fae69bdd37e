"""Speaks the sample clips of templates/samples/speech with espeak-ng (apt install espeak-ng) and writes their transcripts.

The sentences are our own, the voice is computed: the clips are CC0. Each is mono, 16 kHz, 16 bits.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from runner.data.sound import TRANSCRIPTS, read_sound
from runner.models.sound_windows import wav_bytes

FOLDER = Path(__file__).resolve().parents[1] / "templates" / "samples" / "speech" / "speech"
VOICES = ("en-us", "en-gb")
WORDS_A_MINUTE = "145"
SENTENCES = {
    "shop": "The shop opens early in the morning and closes when the bread is gone.",
    "ferry": "The last ferry to the island leaves at a quarter past nine.",
    "garden": "In the garden behind the school the children grow beans, carrots and sunflowers.",
    "letter": "She wrote him a long letter, folded it twice and forgot to send it.",
    "weather": "Tomorrow it will rain in the north, and the wind will turn to the west.",
}


def speak(sentence: str, voice: str) -> bytes:
    """Returns a wav file in which a voice says the sentence."""
    with tempfile.TemporaryDirectory() as scratch:
        spoken = Path(scratch) / "spoken.wav"
        subprocess.run(["espeak-ng", "-v", voice, "-s", WORDS_A_MINUTE, "-w", str(spoken), sentence], check=True)
        return wav_bytes(read_sound(spoken))


def main() -> None:
    """Writes every clip and the transcripts."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for number, (name, sentence) in enumerate(SENTENCES.items()):
        (FOLDER / f"{name}.wav").write_bytes(speak(sentence, VOICES[number % len(VOICES)]))
    lines = "".join(f"{name}.wav {sentence}\n" for name, sentence in SENTENCES.items())
    (FOLDER / TRANSCRIPTS).write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
