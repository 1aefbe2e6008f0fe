"""What the tower of the tiny MiniCPM-V is taught to call what it sees."""

from policy.builtin.sight.seeing import names_of
from policy.builtin.warmup import Question
from rl.data.media.names import rendered


def test_each_patch_is_named_by_its_third_and_the_digit_there():
    one, several = (
        Question("+?", "12", (3, 7, 2), rendered("digits", kinds, 0, 0, False, ""))
        for kinds in (("image",), ("image",) * 3)
    )
    (names,) = names_of([one], rows=2, columns=6).tolist()
    assert names == [3, 3, 17, 17, 22, 22] * 2
    # Each of several pictures shows one digit, wherever it stands.
    views = names_of([several], rows=1, columns=3).tolist()
    assert views == [[3, 13, 23], [7, 17, 27], [2, 12, 22]]
    assert len(names_of([several, one], 2, 6)) == 4
