# SPDX-License-Identifier: Apache-2.0
"""The profile RuntimeDefault: what a container may ask of the kernel unless told otherwise.

An allow list: what is not named fails with EPERM, and what is newer than the newest named with
ENOSYS, as it would on an older kernel, so that programs fall back (`kernel/seccomp_compiler.py`).

A call is named if ordinary programs use it and it acts on the caller's own processes, memory,
files and namespaces. It is not if it reaches beyond them, or is a large, young or rarely used part
of the kernel; then it comes with the capability that the kernel itself asks for it, if a container
has been given that. The list agrees with what containerd's and moby's default profiles allow, but:

- io_uring is not allowed: it does what other calls do past this filter, and most kernel
  exploits of its years went through it. containerd and moby took it out again for this reason.
- sockets of AF_ALG and AF_VSOCK cannot be opened. A vsock speaks to the hypervisor's host past any
  network namespace; AF_ALG lends the kernel's ciphers, which programs have of their own, and has
  lent root. socketcall, by which old 32-bit programs would open them unseen, goes with them: its
  arguments lie in memory. Linux has the single calls since 4.3.
- x32 is left out: hardly a kernel has it, and its second set of numbers deceived filters before.
"""

from pycri.model.seccomp import (
    ConditionalRule,
    SeccompAction,
    SeccompArchitecture,
    SeccompArgument,
    SeccompCondition,
    SeccompOperator,
    SeccompProfile,
    SeccompRule,
)

_ENOSYS = 38

_FILES = """
    access faccessat faccessat2 open openat openat2 creat close close_range
    read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2
    lseek _llseek dup dup2 dup3 fcntl fcntl64 flock ioctl
    truncate truncate64 ftruncate ftruncate64 fallocate fadvise64 fadvise64_64 readahead
    fsync fdatasync sync syncfs sync_file_range
    sendfile sendfile64 splice tee vmsplice copy_file_range
    pipe pipe2 eventfd eventfd2 memfd_create memfd_secret
    cachestat
"""
_TREE = """
    chdir fchdir getcwd getdents getdents64 mkdir mkdirat rmdir mknod mknodat
    link linkat symlink symlinkat readlink readlinkat unlink unlinkat rename renameat renameat2
    stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx statfs statfs64 fstatfs
    fstatfs64 chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown
    lchown32 umask utime utimes futimesat utimensat utimensat_time64
    getxattr lgetxattr fgetxattr setxattr lsetxattr fsetxattr listxattr llistxattr flistxattr
    removexattr lremovexattr fremovexattr
    inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark
    landlock_create_ruleset landlock_add_rule landlock_restrict_self
    name_to_handle_at
"""
_WAITING = """
    select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait
    epoll_pwait2 io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents
    io_pgetevents_time64 futex futex_time64 futex_waitv futex_wake futex_wait futex_requeue
    get_robust_list set_robust_list restart_syscall pause
"""
_SOCKETS = """
    socketpair bind listen accept accept4 connect shutdown getsockname getpeername getsockopt
    setsockopt send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64
"""
_PROCESSES = """
    fork vfork execve execveat exit exit_group wait4 waitid waitpid
    kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo
    pidfd_open pidfd_send_signal process_mrelease
    getpid getppid gettid getpgid getpgrp getsid setpgid setsid set_tid_address
    getpriority setpriority ioprio_get ioprio_set
    getrlimit ugetrlimit setrlimit prlimit64 getrusage times prctl
    sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam
    sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min
    sched_rr_get_interval sched_rr_get_interval_time64 sched_yield getcpu
    get_thread_area set_thread_area rseq membarrier seccomp
"""
_SIGNALS = """
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time64 sigaltstack sigprocmask sigreturn signalfd signalfd4
"""
_IDENTITY = """
    getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32
    getresgid getresgid32 getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32
    setregid setregid32 setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid
    setfsgid32 setgroups setgroups32 capget capset
"""
"""To change them is for the capability checks to allow, not for a filter."""
_MEMORY = """
    brk mmap mmap2 munmap mremap mprotect madvise mincore msync mlock mlock2 mlockall munlock
    munlockall remap_file_pages pkey_alloc pkey_free pkey_mprotect map_shadow_stack
"""
_IPC = """
    ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64
    shmat shmctl shmdt shmget mq_open mq_unlink mq_notify mq_getsetattr mq_timedsend
    mq_timedsend_time64 mq_timedreceive mq_timedreceive_time64
"""
_TIME = """
    time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64
    nanosleep clock_nanosleep clock_nanosleep_time64 alarm getitimer setitimer
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 adjtimex clock_adjtime clock_adjtime64
"""
"""adjtimex and its like also only read; to set the clock, they ask for CAP_SYS_TIME."""
_SYSTEM = "uname sysinfo getrandom"

_BY_ARCHITECTURE = {
    "amd64": "arch_prctl modify_ldt",
    "arm64": """
        arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls
    """,
}
_BY_CAPABILITY = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount
        mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname
        sethostname setns syslog umount umount2 unshare
    """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYSLOG": "syslog",
}

_NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEW{CGROUP,UTS,IPC,USER,PID,NET,NS}: with a user namespace of its own a process has every
capability in it, and with them most of the kernel's code to attack."""
_PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, UNAME26 with either, and the question for the one at present. Others
turn protections off (READ_IMPLIES_EXEC, ADDR_NO_RANDOMIZE)."""
_SOCKET_FAMILIES = ((0, 32), (32, 4), (36, 2), (39, 1), (41, 1), (42, 2), (44, 4))
"""(first, how many): all up to 47 but AF_ALG, 38, and AF_VSOCK, 40. In blocks that masks can tell,
because a mask also takes away the upper half of the register, which the kernel does not look at:
compared as 64 bits, 1 << 32 | AF_ALG would pass for another family."""
_INT = 0xFFFFFFFF


def default_profile() -> SeccompProfile:
    """Return RuntimeDefault, for every architecture and set of capabilities."""
    return SeccompProfile(
        default_action=SeccompAction.ERRNO,
        families={
            "amd64": (SeccompArchitecture.X86,),
            "arm64": (SeccompArchitecture.ARM,),
        },
        rules=(
            *_always(),
            *(
                ConditionalRule(rule=_allow(names), includes=_on(architecture))
                for architecture, names in _BY_ARCHITECTURE.items()
            ),
            *(
                ConditionalRule(rule=_allow(names), includes=_with(capability))
                for capability, names in _BY_CAPABILITY.items()
            ),
            *_without_admin(),
        ),
    )


def _always() -> list[ConditionalRule]:
    groups = (
        *(_FILES, _TREE, _WAITING, _SOCKETS, _PROCESSES, _SIGNALS),
        *(_IDENTITY, _MEMORY, _IPC, _TIME, _SYSTEM),
    )
    rules = [ConditionalRule(rule=_allow(names)) for names in groups]
    rules += [
        ConditionalRule(rule=_allow("personality", _masked(0, _INT, value)))
        for value in _PERSONALITIES
    ]
    rules += [
        ConditionalRule(rule=_allow("socket", _masked(0, _INT & -count, first)))
        for first, count in _SOCKET_FAMILIES
    ]
    # Before Linux 4.8 a tracer could change a call after the filter had seen it.
    tracing = _allow("ptrace process_vm_readv process_vm_writev")
    rules.append(ConditionalRule(rule=tracing, includes=SeccompCondition(kernel=(4, 8))))
    return rules


def _without_admin() -> list[ConditionalRule]:
    """Allow threads and processes, but no new namespaces.

    clone3 has its flags in memory, out of sight: with ENOSYS libraries fall back to clone.
    """
    unprivileged = _with("CAP_SYS_ADMIN")
    plain = _masked(0, _NAMESPACE_FLAGS, 0)
    missing = SeccompRule(names=("clone3",), action=SeccompAction.ERRNO, errno=_ENOSYS)
    return [
        ConditionalRule(rule=_allow("clone", plain), excludes=unprivileged),
        ConditionalRule(rule=missing, excludes=unprivileged),
    ]


def _allow(names: str, *arguments: SeccompArgument) -> SeccompRule:
    return SeccompRule(names=tuple(names.split()), arguments=arguments)


def _masked(index: int, mask: int, value: int) -> SeccompArgument:
    return SeccompArgument(
        index=index, operator=SeccompOperator.MASKED_EQ, value=mask, value_two=value
    )


def _with(capability: str) -> SeccompCondition:
    return SeccompCondition(capabilities=frozenset((capability,)))


def _on(architecture: str) -> SeccompCondition:
    return SeccompCondition(architectures=frozenset((architecture,)))
