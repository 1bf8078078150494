"""Answers in the namespace that plays the internet: TCP 80 and 443 greet, UDP 53 and 9 echo."""

from __future__ import annotations

import selectors
import socket


def main() -> None:
    """Serve until killed; says ``ready`` once it listens."""
    ready = selectors.DefaultSelector()
    for port in (80, 443):
        listener = socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64
        )
        ready.register(listener, selectors.EVENT_READ)
    for port in (9, 53):
        # One socket for each family: an answer must come from the address that was asked.
        for address in ("192.0.2.1", "198.51.100.53", "203.0.113.80", "2001:db8::1"):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            echo = socket.socket(family, socket.SOCK_DGRAM)
            echo.bind((address, port))
            ready.register(echo, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _events in ready.select():
            each = key.fileobj
            assert isinstance(each, socket.socket)
            try:
                if each.type == socket.SOCK_STREAM:
                    caller, _peer = each.accept()
                    caller.settimeout(2)
                    caller.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\noutside!\n")
                    caller.close()
                else:
                    data, peer = each.recvfrom(65535)
                    each.sendto(data, peer)
            except OSError:
                continue


if __name__ == "__main__":
    main()
