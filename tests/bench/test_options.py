"""The suites' command-line options."""

import pytest

from bench.options import Selection, chosen, require_known


class Options:
    """The part of pytest's config that is read."""

    def __init__(self, **given):
        self.given = given

    def getoption(self, name, default=None):
        return self.given.get(name, default)


def test_nothing_given_selects_everything():
    assert Selection.of(Options()) == Selection()
    assert chosen("anything", None)


def test_lists_are_split_at_commas_and_stripped():
    selection = Selection.of(Options(nets="DiracNet-18, DiracNet-34-2", dtypes="float32", contenders="a,,b", batch=4))
    assert selection == Selection(("DiracNet-18", "DiracNet-34-2"), None, ("float32",), ("a", "b"), None, 4)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"nets": " , "}, "--nets names nothing"),
        ({"dtypes": "float31"}, "'float31'; choose from float32, tf32, float16, bfloat16"),
        ({"batch": 0}, r"--batch must be at least 1 and below 2 \*\* 31, got 0"),
        ({"batch": 2**31}, r"--batch must be at least 1 and below 2 \*\* 31, got 2147483648"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(pytest.UsageError, match=message):
        Selection.of(Options(**given))


def test_patterns():
    assert chosen("triton-split", ("cudnn", "triton-*"))
    assert not chosen("triton-split", ("triton",))
    require_known("--contenders", ("triton-*",), ("triton-split",))
    with pytest.raises(pytest.UsageError, match="--contenders: nothing is named 'cuddn'; choose from cudnn"):
        require_known("--contenders", ("cuddn",), ("cudnn",))
