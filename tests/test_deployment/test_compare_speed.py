"""tools/deployment/compare_speed.py, as a user starts it. In test_export's group: it runs other runtimes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_runtime_has_a_row(exported, tmp_path):
    cfg, checkpoint, file = exported('classifier')
    config = tmp_path / 'config.py'
    cfg.dump(config)
    command = [sys.executable, ROOT / 'tools/deployment/compare_speed.py', config, checkpoint, file]
    command += ['--shape', '224', '224', '--rounds', '2', '--threads', '1']
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[1]: line.split() for line in done.stdout.splitlines() if len(line.split()) > 6}
    for runtime in ('torch', 'onnxruntime', 'openvino'):
        assert float(rows[runtime][3]) > 0
        ours, torch = float(rows[runtime][3]), float(rows['torch'][3])  # in whole milliseconds
        low, high = (ours - 0.5) / (torch + 0.5) - 0.006, (ours + 0.5) / max(torch - 0.5, 0.1) + 0.006
        assert low <= float(rows[runtime][5]) <= high, rows
    assert rows['torch'][5] == '1.00'


def test_a_missing_file(tmp_path):
    """Found by the process that loads it."""
    config = ROOT / 'configs/handwritten/classify_lavit_nano.py'
    command = [sys.executable, ROOT / 'tools/deployment/compare_speed.py', config, 'a.pth', 'a.onnx']
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (
        2,
        'error: checkpoint a.pth does not exist; expected a .pth or .safetensors file, relative to the current '
        'folder\n',
    )


def test_mistakes(tmp_path):
    command = [sys.executable, str(ROOT / 'tools/deployment/compare_speed.py'), 'a.py', 'a.pth', 'a.onnx']
    done = subprocess.run([*command, '--rounds', '0'], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and 'error: --rounds, --threads and --shape must be positive' in done.stderr
