"""The command transfer-caffe, which runs all commands."""

import pytest

from transfer_caffe import cli


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert "example" in capsys.readouterr().out


def test_an_unknown_command_lists_the_known_ones(capsys):
    assert cli.main(["trian"]) == 2
    assert "unknown command 'trian'; known: photos, ilsvrc, folders, split" in capsys.readouterr().err
