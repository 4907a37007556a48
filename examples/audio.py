"""Audio as speech models like it: mono FLAC. `etl_args`: samples per second, 8000 to 192000; default `16000`."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from typing import ClassVar

from etl_server import ETLServer


class Resample(ETLServer):
    """Runs ffmpeg on WAV, FLAC, MP3 or Ogg: by the path of the local file where there is one, else through a pipe."""

    max_concurrency: ClassVar[int | None] = 1  # there is a worker process for every CPU
    timeout = 40.0
    """Seconds that ffmpeg may take; a target waits 45 for an object."""

    def setup(self) -> None:
        if shutil.which("ffmpeg") is None:
            raise RuntimeError("ffmpeg is not on the PATH: install it, for example with `apt-get install ffmpeg`")

    def transform(self, data: bytes | str, path: str, etl_args: str) -> bytes:
        rate = etl_args or "16000"
        if not (re.fullmatch("[0-9]{4,6}", rate) and 8000 <= int(rate) <= 192000):
            raise ValueError(f"etl_args={rate!r}: expected samples per second, from 8000 to 192000")
        # Under ETL_DIRECT_FQN=true `data` is the path of a local file.
        source, piped = (data, b"") if isinstance(data, str) else ("pipe:0", data)
        # Not to a pipe: only in a file can ffmpeg go back to write the length into FLAC's header.
        with tempfile.NamedTemporaryFile(suffix=".flac") as out:
            self.ffmpeg("-i", source, "-vn", "-ac", "1", "-ar", rate, out.name, piped=piped)
            return out.read()

    def ffmpeg(self, *arguments: str, piped: bytes) -> None:
        """Run ffmpeg with `piped` as its standard input.

        Raises:
            RuntimeError: it failed. The text is the last thing that it said.
            TimeoutError: it took too long, and was killed.
        """
        # The formats are named because ffmpeg also knows playlists, which make it open other files and addresses.
        options = ["-nostdin", "-y", "-v", "error", "-xerror", "-format_whitelist", "wav,flac,mp3,ogg"]
        try:
            done = subprocess.run(
                ["ffmpeg", *options, *arguments], input=piped, capture_output=True, timeout=self.timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"ffmpeg took longer than {self.timeout:g} s") from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").split("\n")
            last = next((line for line in reversed(said) if line.strip()), f"exit status {done.returncode}")
            raise RuntimeError(f"ffmpeg: {last}")

    def get_mime_type(self) -> str:
        return "audio/flac"
