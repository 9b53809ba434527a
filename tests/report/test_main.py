import json
import subprocess
import sys

import pytest
from PIL import Image

from nayer_pl.report.__main__ import main

CURVE = [(10, 0.5, 4.0, 1.0), (20, 0.88, 8.0, 3.0)]


@pytest.fixture
def sweep(tmp_path, write_run, distilled):
    for seed, accuracy in enumerate((0.8, 0.7, 0.6)):
        write_run(f"sweep/n{seed}", CURVE, distilled(accuracy), seed=seed)
    write_run("sweep/killed", CURVE, method="fast")
    return tmp_path / "sweep"


def test_four_files_say_the_same(sweep, tmp_path, capsys):
    main([str(sweep), "--out", str(tmp_path / "out"), "--title", "Mine"])
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "report.html", "report.json", "report.md", "report.png",
    ]  # fmt: skip
    printed = capsys.readouterr()
    assert "3 runs" in printed.out
    assert "killed: not finished: 88.0 % after 20 student updates" in printed.err

    plain = json.loads((out / "report.json").read_text())
    (method,) = plain["sections"][0]["methods"]
    student = method["figures"]["student_accuracy"]
    assert student == {
        "mean": pytest.approx(0.7), "std": pytest.approx(0.1), "values": [0.8, 0.7, 0.6]
    }  # fmt: skip
    assert [point["accuracy"] for point in method["curves"]["seconds"]] == pytest.approx(
        [0.5, 0.88]
    )
    assert method["figures"]["seconds_to_95"]["values"] == [11, 11, 11]
    assert plain["left_out"][0]["name"].endswith("killed")

    page, table = ((out / f"report.{kind}").read_text() for kind in ("html", "md"))
    for cell in ("70.0 ± 10.0", "77.8 ± 11.1", "1,200"):
        assert cell in page
        assert cell in table
    assert "# Mine" in table
    with Image.open(out / "report.png") as picture:
        assert picture.width == 1440


def test_markdown_tables_are_rectangles(sweep, tmp_path):
    main([str(sweep), "--out", str(tmp_path / "out")])
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    widths = [line.count("|") for line in lines if line.startswith("|")]
    assert widths == [10] * 3 + [9] * 3


def test_a_report_can_be_made_again(sweep, tmp_path):
    for _ in range(2):
        main([str(sweep), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("arguments", [[], ["nowhere"]])
def test_no_runs_is_an_error_that_says_what_to_name(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert str(exit.value).startswith("error: There is no finished run to report; name ")
    assert ("nowhere: there is no such directory" in str(exit.value)) == bool(arguments)
    assert not (tmp_path / "report").exists()


def test_curves_are_drawn_by_a_library_that_only_reports_import():
    code = "import sys, nayer_pl.report.__main__; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
