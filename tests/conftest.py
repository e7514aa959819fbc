"""What the tests of every verb share."""

import pytest

from tessera import cli


@pytest.fixture
def tessera(capsys):
    """Runs the command line in this process; `(exit code, stdout, stderr)`."""

    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out, captured.err

    return call
