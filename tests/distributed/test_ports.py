"""torchrun names a port that was free; the first process listens on it seconds later, when another program may have
it.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import write_run

from ai_finetuning.config.load import load_config
from ai_finetuning.errors import ProcessesError
from ai_finetuning.execution import processes as launch
from ai_finetuning.execution.request import request_of
from ai_finetuning.execution.resolve import resolve

# In torchrun's place: the first process's log of one attempt, with the store that it really opens on the port.
ATTEMPT = """
import sys
from pathlib import Path
from torch.distributed import TCPStore
folder, port = Path(sys.argv[1]), int(sys.argv[2])
log = folder / "logs" / "run" / "attempt_0" / "0" / "stderr.log"
log.parent.mkdir(parents=True)
(folder / "started-0").touch()
try:
    TCPStore("127.0.0.1", port, 1, is_master=True)
except Exception as error:
    log.write_text(f"{type(error).__name__}: {error}")
    sys.exit(1)
log.write_text("done")
"""


@pytest.mark.parametrize("until", [2, 9], ids=["free at the second attempt", "never free"])
def test_a_port_that_another_program_takes_costs_another_attempt(
    until: int, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    config = load_config(write_run(tmp_path, tiny_model_dir), ["parallel.processes=2"])
    plan = resolve(request_of(config))
    folder = tmp_path / "out" / launch.FOLDER
    taken = socket.create_server(("127.0.0.1", 0))
    port, attempts = str(taken.getsockname()[1]), []
    popen = subprocess.Popen

    def start(command: list[str], **settings: Any) -> Any:
        assert "torch.distributed.run" in command
        attempts.append(not (folder / "started-0").exists())  # each begins as the first one did
        if len(attempts) == until:
            taken.close()
        return popen([sys.executable, "-c", ATTEMPT, str(folder), port], **settings)

    monkeypatch.setattr(subprocess, "Popen", start)
    try:
        if until == 2:
            launch.run_processes(plan)
        else:
            with pytest.raises(ProcessesError, match="EADDRINUSE"):
                launch.run_processes(plan)
    finally:
        taken.close()
    assert attempts == [True] * min(until, launch.PORTS)
