import json
from types import SimpleNamespace

import pytest
from PIL import Image

from nayer_pl.report.__main__ import main

CURVE = [(10, 0.5, 4.0, 1.0), (20, 0.88, 8.0, 3.0)]


@pytest.fixture
def sweep(tmp_path, write_run, distilled):
    for seed, accuracy in enumerate((0.8, 0.7, 0.6)):
        write_run(f"sweep/n{seed}", CURVE, distilled(accuracy), seed=seed)
    write_run("sweep/killed", CURVE, method="fast")
    write_run("sweep/alone", CURVE, distilled(0.5, machine="an abacus"), method="zskt")
    return tmp_path / "sweep"


def test_main(sweep, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.md").write_text("of an earlier report")
    main([str(sweep), "--out", str(out), "--title", "Mine"])
    assert sorted(path.name for path in out.iterdir()) == [
        "report.html", "report.json", "report.md", "report.png",
    ]  # fmt: skip
    printed = capsys.readouterr()
    assert "4 runs" in printed.out
    assert "killed: not finished: 88.0 % after 20 student updates" in printed.err

    plain = json.loads((out / "report.json").read_text())
    method, _ = plain["sections"][0]["methods"]
    student = method["figures"]["student_accuracy"]
    assert student == {
        "mean": pytest.approx(0.7), "std": pytest.approx(0.1), "values": [0.8, 0.7, 0.6]
    }  # fmt: skip
    assert [point["accuracy"] for point in method["curves"]["seconds"]] == pytest.approx(
        [0.5, 0.88]
    )
    assert method["figures"]["seconds_to_95"]["values"] == [11, 11, 11]
    assert plain["sections"][0]["gaps"] == ["zskt lacks seed 1, 2"]
    assert plain["left_out"][0]["name"].endswith("killed")

    page, table = ((out / f"report.{kind}").read_text() for kind in ("html", "md"))
    for cell in (
        "70.0 ± 10.0", "77.8 ± 11.1", "1,200", "zskt lacks seed 1, 2", "an abacus"
    ):  # fmt: skip
        assert cell in page
        assert cell in table
    assert table.startswith("# Mine")
    widths = [line.count("|") for line in table.splitlines() if line.startswith("|")]
    assert widths == [10] * 8
    with Image.open(out / "report.png") as picture:
        assert picture.width == 1440


@pytest.mark.parametrize("arguments", [[], ["nowhere"]])
def test_main__no_runs(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert str(exit.value).startswith("error: There is no finished run to report; name ")
    assert ("nowhere: there is no such directory" in str(exit.value)) == bool(arguments)
    assert not (tmp_path / "report").exists()


def test_main__unknown_project(tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.Api", lambda: SimpleNamespace(runs={}.__getitem__))
    with pytest.raises(SystemExit, match=r"^error: The runs of 'me/nayer' cannot be read"):
        main(["--wandb", "me/nayer", "--out", str(tmp_path)])
