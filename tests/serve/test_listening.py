"""How the service listens."""

import asyncio
import socket

import pytest

from perceiver_vl import UsageError
from perceiver_vl.serve.run import listen
from perceiver_vl.serve.settings import ServeSettings


def test_small_answers_are_sent_at_once() -> None:
    """Without Nagle's algorithm, which with a client's delayed acknowledgement costs 40 ms an answer."""

    async def accepted_option() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            found.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen(ServeSettings(("index",), port=0)) as listening:
            async with await asyncio.start_server(accepted, sock=listening):
                _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
                option = await found
                writer.close()
        return option

    assert asyncio.run(accepted_option()) != 0


def test_a_name_that_is_not_of_this_machine_is_told() -> None:
    with pytest.raises(UsageError, match="cannot be listened on"):
        listen(ServeSettings(("index",), host="192.0.2.1", port=0))
