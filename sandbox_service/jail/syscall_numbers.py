"""Numbers of the system calls that the jail speaks of, by architecture.

As in the kernel's own tables; a call that an architecture does not have is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

SyscallNumbers = Mapping[str, int]
_ARCHITECTURES = ("x86_64", "aarch64")
_TABLE = """
acct 163 89
add_key 248 217
bpf 321 280
brk 12 214
capget 125 90
capset 126 91
chroot 161 51
clock_gettime 228 113
clock_nanosleep 230 115
clone 56 220
clone3 435 435
close 3 57
delete_module 176 106
execve 59 221
execveat 322 281
exit 60 93
exit_group 231 94
fcntl 72 25
finit_module 313 273
fork 57 -
fsconfig 431 431
fsmount 432 432
fsopen 430 430
fspick 433 433
fstat 5 80
ftruncate 77 46
futex 202 98
getpid 39 172
getrandom 318 278
gettid 186 178
gettimeofday 96 169
init_module 175 105
io_setup 206 0
io_submit 209 2
io_uring_enter 426 426
io_uring_register 427 427
io_uring_setup 425 425
ioperm 173 -
iopl 172 -
kcmp 312 272
kexec_file_load 320 294
kexec_load 246 104
keyctl 250 219
landlock_create_ruleset 444 444
landlock_restrict_self 446 446
lookup_dcookie 212 18
lseek 8 62
madvise 28 233
mmap 9 222
modify_ldt 154 -
mount 165 40
mount_setattr 442 442
move_mount 429 429
mprotect 10 226
mremap 25 216
munmap 11 215
name_to_handle_at 303 264
nanosleep 35 101
newfstatat 262 79
open_by_handle_at 304 265
open_tree 428 428
perf_event_open 298 241
personality 135 92
pidfd_getfd 438 438
pidfd_open 434 434
pidfd_send_signal 424 424
pivot_root 155 41
pread64 17 67
preadv 295 69
preadv2 327 286
prlimit64 302 261
process_madvise 440 440
process_vm_readv 310 270
process_vm_writev 311 271
ptrace 101 117
pwrite64 18 68
quotactl 179 60
read 0 63
reboot 169 142
recvmsg 47 212
request_key 249 218
restart_syscall 219 128
rseq 334 293
rt_sigaction 13 134
rt_sigprocmask 14 135
rt_sigreturn 15 139
sched_getaffinity 204 123
sched_yield 24 124
seccomp 317 277
sendto 44 206
set_robust_list 273 99
setfsgid 123 152
setfsuid 122 151
setgid 106 144
setgroups 116 159
setns 308 268
setregid 114 143
setresgid 119 149
setresuid 117 147
setreuid 113 145
setuid 105 146
sigaltstack 131 132
swapoff 168 225
swapon 167 224
syslog 103 116
tgkill 234 131
umount2 166 39
unshare 272 97
userfaultfd 323 282
vfork 58 -
write 1 64
writev 20 66
"""


def numbers_of(machine: str) -> SyscallNumbers | None:
    """Return name to number on an architecture as `uname -m` has it; None for an unknown one."""
    if machine not in _ARCHITECTURES:
        return None
    column = 1 + _ARCHITECTURES.index(machine)
    rows = [line.split() for line in _TABLE.split("\n") if line]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}
