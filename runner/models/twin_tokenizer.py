"""Builds a small fast tokenizer of a family's own style, trained on the text below: the same text gives the same ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.models.twin_vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

SIZE = 640  # entries of a twin's vocabulary before its control tokens; the 256 bytes are among them
CONTEXT = 4096

CORPUS = (
    "The lighthouse keeper wrote the weather into a small book every morning before he made his coffee.",
    "Rain fell on the harbour, and the boats lay still between the grey walls of the old town.",
    "A model is a promise about data that it has not seen; a measurement says whether the promise holds.",
    "Please tell me, in two sentences, why the sky is blue and why it turns red in the evening.",
    "The quick answer is not always the right one, but the right one should not take all day.",
    "She counted seven trains, twelve wagons and one very long whistle that nobody could explain.",
    "What is the capital of France? The capital of France is Paris, a city on the river Seine.",
    "If you add 17 and 25 you get 42; if you multiply them you get 425, which is more than four hundred.",
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))  # 12",
    "The children built a bridge of wood over the stream and named it after their grandmother.",
    "In winter the mountains are white, in spring they are green, and in summer the cows come up again.",
    "An optimiser takes a slow graph and gives a fast graph that computes the same numbers.",
    "Write a short story about a robot who learns to bake bread for the people of its village.",
    "The museum opens at nine, closes at five and is free for students on the first Sunday of the month.",
    "Words are made of smaller pieces, and a tokenizer knows which pieces come often enough to keep.",
    "Yesterday the market sold apples, pears, cheese and honey; today it sells only umbrellas.",
)


def train_tokenizer(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose control tokens have the first ids, ready for `save_pretrained`."""
    from transformers import PreTrainedTokenizerFast

    trained = {"byte-bpe": _byte_bpe, "metaspace-bpe": _metaspace_bpe, "wordpiece": _wordpiece}[vocabulary.style](vocabulary)
    trained.add_tokens(list(vocabulary.plain))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        padding_side="right",
        model_input_names=["input_ids", *(["token_type_ids"] if vocabulary.segments else []), "attention_mask"],
        **vocabulary.roles,
    )
    tokenizer.chat_template = vocabulary.template
    return tokenizer


def _byte_bpe(vocabulary: Vocabulary) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=SIZE,
            special_tokens=list(vocabulary.special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if "cls_token" in vocabulary.roles:
        tokenizer.post_processor = processors.RobertaProcessing(
            _named(tokenizer, vocabulary, "sep_token"), _named(tokenizer, vocabulary, "cls_token")
        )
    elif vocabulary.adds_bos:
        tokenizer.post_processor = _framed(tokenizer, vocabulary)
    return tokenizer


def _metaspace_bpe(vocabulary: Vocabulary) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    unknown = vocabulary.roles["unk_token"]
    special = [*vocabulary.special, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = Tokenizer(models.BPE(unk_token=unknown, fuse_unk=True, byte_fallback=True))
    pieces.pre_tokenizer = pre_tokenizers.Sequence(  # no piece reaches over a space or joins digits
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Digits(individual_digits=True)]
    )
    pieces.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=SIZE, special_tokens=special, show_progress=False))
    tokenizer = Tokenizer(pieces.model)  # without the bytes among the added tokens: they are vocabulary, not control tokens
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in vocabulary.special])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if vocabulary.adds_bos:
        tokenizer.post_processor = _framed(tokenizer, vocabulary)
    return tokenizer


def _wordpiece(vocabulary: Vocabulary) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=vocabulary.roles["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=list(vocabulary.special), show_progress=False)
    )
    first, last = vocabulary.roles["cls_token"], vocabulary.roles["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
        special_tokens=[_named(tokenizer, vocabulary, "cls_token"), _named(tokenizer, vocabulary, "sep_token")],
    )
    return tokenizer


def _framed(tokenizer: Tokenizer, vocabulary: Vocabulary) -> TemplateProcessing:
    from tokenizers import processors

    roles = ("bos_token", "eos_token") if vocabulary.adds_eos else ("bos_token",)
    bos, eos = vocabulary.roles["bos_token"], vocabulary.roles["eos_token"] if vocabulary.adds_eos else ""
    return processors.TemplateProcessing(
        single=f"{bos} $A {eos}".strip(),
        pair=f"{bos} $A {eos}".strip() + f" {bos}:1 $B:1 {eos and eos + ':1'}".rstrip(),
        special_tokens=[_named(tokenizer, vocabulary, role) for role in roles],
    )


def _named(tokenizer: Tokenizer, vocabulary: Vocabulary, role: str) -> tuple[str, int]:
    token = vocabulary.roles[role]
    number = tokenizer.token_to_id(token)
    assert number is not None
    return token, number
