"""Which system calls an application makes under a policy. Everything that is not listed is refused.

The list is what servers and desktop programs of today use; left out is what administers a machine (mounts, modules, clocks, swap), looks
into other processes, or is a large interface that few programs need (io_uring, BPF, perf, key rings, userfaultfd).
"""

import errno
from typing import Final

from obelisk.model.policy import Call, Calls, Connect, Contact, Listen, Nest, Policy, Power, Reach, WriteExecute
from obelisk.system.seccomp import Check, Filter
from obelisk.system.syscalls import NUMBERS

_FILES = """
access cachestat chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fallocate fchdir
fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr file_getattr flistxattr flock fremovexattr fsetxattr fstat fstatfs
fsync ftruncate futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
lchown lgetxattr link linkat listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod mknodat newfstatat
open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr removexattrat
rename renameat renameat2 rmdir sendfile setxattr setxattrat splice stat statfs statx symlink symlinkat sync sync_file_range syncfs tee
truncate umask unlink unlinkat utime utimensat utimes vmsplice write writev
"""
_WAITING = """
epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 io_cancel io_destroy io_getevents io_pgetevents
io_setup io_submit pipe pipe2 poll ppoll pselect6 select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_settime
"""
_PROCESSES = """
alarm arch_prctl capget capset execve execveat exit exit_group fork get_robust_list getcpu getegid geteuid getgid getgroups getpgid
getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid ioprio_get kill membarrier pause
pidfd_open pidfd_send_signal prlimit64 process_madvise process_mrelease restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask
rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_yield set_robust_list set_tid_address
setfsgid setfsuid setgid setgroups setpgid setregid setresgid setresuid setreuid setrlimit setsid setuid sigaltstack sysinfo tgkill times
tkill uname vfork wait4 waitid
"""
_MEMORY = """
brk get_mempolicy madvise mincore mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free shmctl shmdt shmget
"""
_TIME = """
clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun
timer_gettime timer_settime
"""
_TALKING = """
accept accept4 bind connect futex futex_requeue futex_wait futex_waitv futex_wake getpeername getrandom getsockname getsockopt listen
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd recvfrom recvmmsg recvmsg semctl semget
semop semtimedop sendmmsg sendmsg sendto setsockopt shutdown
"""
_GRANTED = {
    Calls.DEBUG: "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd",
    Calls.IO_URING: "io_uring_setup io_uring_enter io_uring_register",
    Calls.KEYRING: "add_key keyctl request_key",
    Calls.MEMORY_LOCK: "mlock mlock2 mlockall",
    Calls.SCHEDULING: "sched_setaffinity sched_setattr sched_setparam sched_setscheduler setpriority ioprio_set",
}
_NESTING = "unshare setns chroot pivot_root mount umount2 seccomp"
# Of these a program takes ENOSYS for the word of an older kernel, and does without.
_UNKNOWN = "clone3 io_uring_setup landlock_create_ruleset landlock_add_rule landlock_restrict_self map_shadow_stack statmount listmount"

_NEW_NAMESPACES: Final = 0x7E020080
_WRITE, _EXECUTE = 2, 4
_SHM_EXEC = 0o100000
_MFD_NOEXEC_SEAL = 8
_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423
# Subvolumes and snapshots of Btrfs, which everybody may make where they may write: no snapshot of the data has what is in such a one.
_BTRFS_MAKES_SUBVOLUMES = (0x50009401, 0x5000940E, 0x50009417, 0x50009418)
_PR_SET_SECCOMP, _PR_SET_MM = 22, 35
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_RAW, _SOCK_TYPE = 3, 0xF
_PERSONALITIES = (0, 0xFFFFFFFF)

OPENING = {"open": (0, 1), "openat": (1, 2), "openat2": (1, 2), "creat": (0, None)}
"""Which arguments of the calls that open a file are its path and the flags."""
LOOKING = {"stat": 0, "lstat": 0, "access": 0, "newfstatat": 1, "statx": 1, "faccessat": 1, "faccessat2": 1, "readlink": 0, "readlinkat": 1}
CHANGING = {"mkdir": 0, "mkdirat": 1, "unlink": 0, "unlinkat": 1, "rename": 1, "renameat": 3, "renameat2": 3, "truncate": 0}
WATCHED = frozenset(NUMBERS[name] for name in (*OPENING, *LOOKING, *CHANGING, "connect", "bind", "execve"))
"""What an observer is told of although it is allowed: other layers may refuse it."""


def filter_of(policy: Policy) -> Filter:
    """The filter of a policy."""
    names = set(f"{_FILES}{_WAITING}{_PROCESSES}{_MEMORY}{_TIME}{_TALKING}".split())
    names |= granted_calls(policy)
    nests = policy.has(Nest())
    if nests:
        names |= set(_NESTING.split())
    allowed: dict[str, tuple[Check, ...]] = dict.fromkeys(names, ())
    allowed |= _memory(executable=policy.has(WriteExecute()))
    allowed["ioctl"] = (Check(1, (_TIOCSTI, _TIOCLINUX, _TIOCSETD, *_BTRFS_MAKES_SUBVOLUMES), errno.EPERM, not_one=True),)
    allowed["personality"] = (Check(0, _PERSONALITIES, errno.EPERM),)
    allowed["prctl"] = (Check(0, (_PR_SET_MM,) if nests else (_PR_SET_MM, _PR_SET_SECCOMP), errno.EPERM, not_one=True),)
    allowed["clone"] = () if nests else (Check(0, (0,), errno.EPERM, mask=_NEW_NAMESPACES),)
    allowed["socket"] = allowed["socketpair"] = _sockets(policy)
    unknown = set(_UNKNOWN.split()) - allowed.keys()
    errors = {number: errno.ENOSYS if name in unknown else errno.EPERM for name, number in NUMBERS.items() if name not in allowed}
    return Filter({NUMBERS[name]: checks for name, checks in allowed.items()}, errors)


def granted_calls(policy: Policy) -> frozenset[str]:
    """The names of the calls that a policy grants beyond those of every application."""
    return frozenset(name for power in policy.of(Call) for name in _GRANTED[power.calls].split())


def power_for(name: str) -> Power | None:
    """The grant that allows a system call which is refused by default, where there is one."""
    for calls, names in _GRANTED.items():
        if name in names.split():
            return Call(calls)
    if name in {"mmap", "mprotect", "pkey_mprotect", "shmat", "memfd_create"}:
        return WriteExecute()
    return Nest() if name in {*_NESTING.split(), "clone", "clone3"} else None


def _memory(*, executable: bool) -> dict[str, tuple[Check, ...]]:
    """Nothing is ever writable and executable, one after the other included."""
    if executable:
        return dict.fromkeys(("mmap", "mprotect", "pkey_mprotect", "shmat", "memfd_create"), ())
    # Toolkits take that for an older kernel's word too, and share the memory of their windows by files, which do not run.
    protect = (Check(2, (0,), errno.EPERM, mask=_EXECUTE),)
    return {
        "mmap": (Check(2, (_WRITE | _EXECUTE,), errno.EPERM, mask=_WRITE | _EXECUTE, not_one=True),),
        "mprotect": protect,
        "pkey_mprotect": protect,
        "shmat": (Check(2, (0,), errno.EPERM, mask=_SHM_EXEC),),
        "memfd_create": (Check(1, (_MFD_NOEXEC_SEAL,), errno.ENOSYS, mask=_MFD_NOEXEC_SEAL),),
    }


def _sockets(policy: Policy) -> tuple[Check, ...]:
    """Local ones; with a grant of network the internet's, and netlink as far as it tells which addresses there are."""
    if not policy.of((Listen, Connect, Reach, Contact)):
        return (Check(0, (_AF_UNIX,), errno.EAFNOSUPPORT),)
    return (
        Check(0, (_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK), errno.EAFNOSUPPORT),
        Check(2, (0,), errno.EPROTONOSUPPORT, among=(0, _AF_NETLINK)),
        Check(1, (_SOCK_RAW,), errno.EPERM, mask=_SOCK_TYPE, not_one=True, among=(0, _AF_INET)),
        Check(1, (_SOCK_RAW,), errno.EPERM, mask=_SOCK_TYPE, not_one=True, among=(0, _AF_INET6)),
    )
