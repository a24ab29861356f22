"""What users are told."""

import sys

import pytest

from subquad import UnsupportedPattern, _fairseq, cli
from subquad.nn import MODULE_REGISTRY, LocalAttention, MultiheadAttention
from tests.fairseq.util import LM_SIZES, PLACES, SIZES, TRAINING, plugin, run

START = [*SIZES, *TRAINING, "--max-tokens", 500, "--max-update", 1]


class OnlySelf(LocalAttention):
    """A mechanism that not every place can have."""

    names = ("onlyself",)

    def __init__(self, embed_dim, num_heads, *, tiles: int = 2, **options):
        super().__init__(embed_dim, num_heads, **options)
        if self.cross and self.causal:
            raise UnsupportedPattern("OnlySelf: causal cross-attention is not defined")
        self.tiles = tiles

    @staticmethod
    def add_attn_specific_args(parent_parser):
        parent_parser.add_argument("--tiles", dest="attn_args.tiles", type=int)
        return parent_parser


@pytest.fixture
def registered(monkeypatch):
    """The mechanism above, as a plugin of ours would register one."""
    monkeypatch.setitem(MODULE_REGISTRY, "OnlySelf", OnlySelf)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "--encoder-self-attention locl",
            "argument --encoder-self-attention: get_mechanism: unknown mechanism "
            "'locl', did you mean 'local'",
        ),
        (
            "--encoder-self-attention local --encoder-self-attention-windw 3",
            "unknown option --encoder-self-attention-windw, did you mean "
            "--encoder-self-attention-window-size",
        ),
        (
            "--cross-attention-window-size 3",
            "--cross-attention-window-size needs --cross-attention",
        ),
        (
            "--cross-attention softmax --cross-attention-window-size 3",
            "--cross-attention softmax: no option --cross-attention-window-size, valid "
            "are --cross-attention-num-kv-heads, --cross-attention-rotary-base",
        ),
        (
            "--decoder-self-attention local --decoder-self-attention-window-size 0",
            "--decoder-self-attention local: LocalAttention: window_size must be at "
            "least 1, got 0",
        ),
        (
            "--encoder-self-attention softmax --encoder-self-attention-num-kv-heads 7",
            "--encoder-self-attention softmax: MultiheadAttention: num_kv_heads must "
            "be positive and divide num_heads, got 7 and 2",
        ),
        (
            "--cross-attention onlyself",
            "--cross-attention onlyself: OnlySelf: causal cross-attention is not "
            "defined",
        ),
    ],
)
def test_bad_flags_are_one_line(corpus, capsys, registered, words, expected):
    with pytest.raises(SystemExit) as caught:
        run("train", *plugin(corpus.pairs, *START, *words.split()))
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"fairseq-train: error: {expected}\n"


def test_a_new_mechanism_appears_by_itself(corpus, tmp_path, registered):
    import torch

    run(
        "train",
        *plugin(corpus.pairs, *START, "--save-dir", tmp_path),
        *("--decoder-self-attention", "onlyself"),
        *("--decoder-self-attention-tiles", 5),
    )
    saved = torch.load(tmp_path / "checkpoint_last.pt")["cfg"]["model"]
    assert saved.decoder_self_attention_tiles == 5


def test_mechanisms_that_share_an_option_share_its_type():
    """They share its flag, too."""
    from subquad.fairseq.places import own_options
    from subquad.nn import mechanisms

    types = {}
    for cls in mechanisms().values():
        for option in own_options(cls):
            kind = (type(option), option.type, option.nargs)
            assert types.setdefault(option.dest, kind) == kind


def test_a_checkpoint_of_another_mechanism(corpus, translator):
    from fairseq.checkpoint_utils import load_model_ensemble

    grouped = {
        "cross_attention": "softmax",
        "cross_attention_window_size": None,
        "cross_attention_num_kv_heads": 1,
    }
    with pytest.raises(RuntimeError) as caught:
        load_model_ensemble([str(translator)], arg_overrides=grouped)
    lines = str(caught.value).splitlines()
    keys = (
        "decoder.layers.0.encoder_attn.k_proj.weight, "
        "decoder.layers.0.encoder_attn.k_proj.bias and 6 more"
    )
    assert lines == [
        f"the model has, the checkpoint lacks or has in another shape: {keys}",
        f"the checkpoint has, the model lacks or has in another shape: {keys}",
        "set --cross-attention and its options as in training; without it the place "
        "has fairseq's own module",
    ]


def test_a_checkpoint_that_differs_elsewhere_keeps_fairseqs_text(translator):
    from fairseq.checkpoint_utils import load_model_ensemble

    with pytest.raises(RuntimeError, match=r"size mismatch.*fc1"):
        load_model_ensemble(
            [str(translator)], arg_overrides={"encoder_ffn_embed_dim": 48}
        )


def build(corpus, *words):
    """A model by fairseq's own parser and task."""
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    argv = sys.argv
    sys.argv = [str(word) for word in ["train", *plugin(*words)]]
    try:
        args = options.parse_args_and_arch(options.get_training_parser())
    finally:
        sys.argv = argv
    cfg = convert_namespace_to_omegaconf(args)
    return tasks.setup_task(cfg.task).build_model(cfg.model)


def test_what_the_places_cannot_do(corpus):
    import torch

    with pytest.raises(UnsupportedPattern, match="cross-self-attention"):
        build(corpus, corpus.pairs, *SIZES, *PLACES, "--cross-self-attention")
    model = build(corpus, corpus.pairs, *SIZES, *PLACES)
    tokens = torch.full([1, 4], 5)
    memory = model.encoder(tokens, torch.tensor([4]))
    with pytest.raises(UnsupportedPattern, match="full_context_alignment"):
        model.decoder(tokens, memory, full_context_alignment=True)
    with pytest.raises(UnsupportedPattern, match="alignments"):
        model.decoder(tokens, memory, alignment_layer=0)
    assert model.decoder.buffered_future_mask(tokens) is None


def test_dropout_is_not_retained_in_attention(corpus):
    dropout = ["--attention-dropout", 0.1]
    model = build(corpus, corpus.pairs, *SIZES, *PLACES, *dropout)
    with pytest.raises(UnsupportedPattern, match="LocalAttention drops"):
        model.make_generation_fast_(retain_dropout=True)
    model.make_generation_fast_(
        retain_dropout=True, retain_dropout_modules=["TransformerDecoder"]
    )
    assert model.decoder.dropout_module.apply_during_inference
    build(corpus, corpus.pairs, *SIZES, *dropout).make_generation_fast_(
        retain_dropout=True
    )


def test_softmax_gives_alignments(corpus):
    import torch

    model = build(corpus, corpus.pairs, *SIZES, "--cross-attention", "softmax").eval()
    assert type(model.decoder.layers[0].encoder_attn) is MultiheadAttention
    tokens = torch.full([1, 4], 5)
    source = torch.full([1, 7], 6)
    _, extra = model(source, torch.tensor([7]), tokens, alignment_layer=0)
    assert extra["attn"][0].shape == (1, 4, 7)
    # The decoder's own attention is still fairseq's, which wants a mask.
    assert model.decoder.buffered_future_mask(tokens).shape == (1, 1)


def test_quantisation_noise_reaches_the_projections(corpus):
    model = build(
        corpus,
        *(corpus.text, "--task", "language_modeling", *LM_SIZES),
        *("--decoder-self-attention", "local", "--quant-noise-pq", 0.5),
    )
    attention = model.decoder.layers[0].self_attn
    assert isinstance(attention, LocalAttention)
    assert all(len(part._forward_pre_hooks) == 1 for part in attention.children())


def test_the_folder_of_the_plugin(capsys):
    assert cli.main(["info", "--fairseq-user-dir"]) == 0
    assert capsys.readouterr().out.strip() == str(_fairseq.user_dir())
    assert (_fairseq.user_dir() / "__init__.py").is_file()
