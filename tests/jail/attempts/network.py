"""Attempts at sockets, ports and whoever listens there."""

from __future__ import annotations

import ctypes
import socket

from tests.jail.attempts.attempt import LIBC, Surroundings, attempt, checked

LOW_LEVEL_PORT = b"\x02\x00\x00\x00\x7f\x00\x00\x01" + bytes(8)
"""A `sockaddr_in` of loopback, port 0; the port goes into the third and fourth byte."""


@attempt
def open_an_internet_socket(_: Surroundings) -> None:
    checked(LIBC.socket(socket.AF_INET, socket.SOCK_STREAM, 0))


@attempt
def open_a_unix_socket(_: Surroundings) -> None:
    checked(LIBC.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0))


@attempt
def open_a_netlink_socket(_: Surroundings) -> None:
    checked(LIBC.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))


@attempt
def make_a_pair_of_sockets(_: Surroundings) -> None:
    checked(LIBC.socketpair(socket.AF_UNIX, socket.SOCK_STREAM, 0, (ctypes.c_int * 2)()))


@attempt
def connect_to_a_port(around: Surroundings) -> None:
    fd = checked(LIBC.socket(socket.AF_INET, socket.SOCK_STREAM, 0))
    address = LOW_LEVEL_PORT[:2] + around.port.to_bytes(2, "big") + LOW_LEVEL_PORT[4:]
    checked(LIBC.connect(fd, address, len(address)))


@attempt
def listen_on_a_port(_: Surroundings) -> None:
    fd = checked(LIBC.socket(socket.AF_INET, socket.SOCK_STREAM, 0))
    checked(LIBC.bind(fd, LOW_LEVEL_PORT, len(LOW_LEVEL_PORT)))


@attempt
def connect_to_an_abstract_socket(around: Surroundings) -> None:
    fd = checked(LIBC.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0))
    address = b"\x01\x00\0" + around.abstract_socket.encode()
    checked(LIBC.connect(fd, address, len(address)))


@attempt
def send_on_another_descriptor(_: Surroundings) -> None:
    checked(LIBC.send(2, b"x", 1, 0))
