"""The script that says what reading fewer tokens saves."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fewer_tokens.py"


def test_the_script_prints_a_row_for_each_way() -> None:
    words = [sys.executable, str(SCRIPT), "--sizes", "small", "--runs", "1"]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines if line.startswith("| small")]
    assert [row[0].split(":")[0].strip("`") for row in rows] == [
        "nothing",
        "merged_patches",
        "frame_summaries",
        "text_guided_tokens",
        "sampled_points",
        "routed_regions",
    ]
    assert rows[0][2] == rows[0][4] == "1.00"
    assert all(float(row[2]) < 1 for row in rows[1:])
    assert all(float(row[3]) > 0 for row in rows)
    wrong = subprocess.run([*words[:2], "--sizes", "huge"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "invalid choice: 'huge'" in wrong.stderr
