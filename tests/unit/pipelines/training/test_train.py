"""What `train` says at the end of a command that is given again."""

import pytest

from gwp.errors import GwpError
from pipelines.training.train import _sent_back


@pytest.mark.parametrize("end", [KeyboardInterrupt("stopped at step 60"), GwpError("no room")])
def test_a_command_that_went_back_says_what_it_would_do_again(
    end: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(end)), _sent_back(30):
        raise end
    assert (
        "leave --from out to go on: with it the run goes back to step 30" in capsys.readouterr().err
    )
    with pytest.raises(type(end)), _sent_back(None):
        raise end
    with _sent_back(30):
        pass
    assert not capsys.readouterr().err
