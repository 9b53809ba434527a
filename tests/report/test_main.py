import json
from types import SimpleNamespace

import pytest
from PIL import Image

from nayer_pl.report.__main__ import main

CURVE = [(10, 0.5, 4.0, 1.0), (20, 0.88, 8.0, 3.0)]


def test_main__four_files_with_equal_numbers(tmp_path, write_run, distilled, capsys):
    for seed, accuracy in enumerate((0.8, 0.7, 0.6)):
        write_run(f"sweep/n{seed}", CURVE, distilled(accuracy), seed=seed)
    write_run("sweep/killed", CURVE, method="fast_dfkd")
    write_run("sweep/alone", CURVE, distilled(0.5, machine="an abacus"), method="zskt")
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.md").write_text("of an earlier report")
    main([str(tmp_path / "sweep"), "--out", str(out), "--title", "Mine"])
    printed = capsys.readouterr()
    assert "4 runs" in printed.out
    assert "killed: not finished: 88.0 % after 20 student updates" in printed.err

    numbers = json.loads((out / "report.json").read_text())
    assert numbers["sections"][0]["gaps"] == ["zskt lacks seed 1, 2"]
    assert numbers["left_out"][0]["name"].endswith("killed")
    nayer, _ = numbers["sections"][0]["methods"]
    student = nayer["figures"]["student_accuracy"]
    assert (student["mean"], student["std"]) == pytest.approx((0.7, 0.1))
    assert student["values"] == [0.8, 0.7, 0.6]
    assert nayer["figures"]["seconds_to_95"]["values"] == [11, 11, 11]
    curve = [point["accuracy"] for point in nayer["curves"]["seconds"]]
    assert curve == pytest.approx([0.5, 0.88])

    page, table = ((out / f"report.{kind}").read_text() for kind in ("html", "md"))
    shown = ("Mine", "70.0 ± 10.0", "77.8 ± 11.1", "1,200", "zskt lacks seed 1, 2", "an abacus")
    for text in shown:
        assert text in page
        assert text in table
    widths = [line.count("|") for line in table.splitlines() if line.startswith("|")]
    assert widths == [10] * 8
    with Image.open(out / "report.png") as picture:
        assert picture.width == 1440


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no finished run to report"),
        (["nowhere"], "nowhere: there is no such directory"),
        (["--wandb", "me/nayer"], "'me/nayer' cannot be read.*wandb login"),
    ],
)
def test_main__errors(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wandb.Api", lambda: SimpleNamespace(runs={}.__getitem__))
    with pytest.raises(SystemExit, match=f"(?s)^error: .*{message}"):
        main(arguments)
    assert not (tmp_path / "report").exists()
