# SPDX-License-Identifier: Apache-2.0
# Prints what a process sees of its container: KEY, a tab, VALUE.
show() { printf '%s\t%s\n' "$1" "$2"; }

while read -r key value; do
    case $key in
        Uid: | Gid: | Groups: | Cap*: | NoNewPrivs: | Seccomp: | Umask: | Sig[BIC]*: | \
            Cpus_allowed_list: | Mems_allowed_list: | THP_enabled: | CoreDumping: | Speculation* )
            show "status $key" "$value" ;;
    esac
done </proc/self/status
while read -r line; do
    case $line in Limit*) ;; *) show "limit ${line%%  *}" "${line#*  }" ;; esac
done </proc/self/limits
for name in oom_score_adj attr/current personality coredump_filter; do
    show "proc $name" "$(cat /proc/self/$name 2>/dev/null)"
done
show hostname "$(hostname)"
show cwd "$(pwd)"
show cwd-mode "$(stat -c '%a %u %g' .)"
show tty "$(tty)"
read -r pid _ _ _ group session terminal _ </proc/self/stat
show session "group leader $((group == pid)), session leader $((session == pid)), tty $terminal"
env -0 | tr '\n\0' ' \n' | while read -r entry; do show "env ${entry%%=*}" "${entry#*=}"; done
for fd in /proc/$$/fd/*; do
    [ -L "$fd" ] || continue # the one this loop was expanded by
    show "fd ${fd##*/}" "$(readlink "$fd")"
    show "fd-mode ${fd##*/}" "$(stat -L -c '%a %u %g' "$fd")"
done
while read -r id parent device root point options rest; do
    optional=${rest%%- *}
    set -- ${rest#*- }
    super=$(printf %s "$3" | tr ',' '\n' | grep -v -E 'dir[+]?=|^inode|^nr_inodes=|^size=' | sort)
    show "mount $point" "$options ${optional%%:*} $1 $(echo $super)"
    # A root that is a whole file system, or what is bound.
    show "mount-root $point" "$root"
done </proc/self/mountinfo
find /dev /dev/pts -maxdepth 1 ! -path /dev ! -path /dev/pts/[0-9]* | sort | while read -r node; do
    show "dev $node" "$(stat -c '%F %t:%T %a %u:%g' "$node") $(readlink "$node")"
done
for node in null zero full random nada kmsg; do
    show "open-read $node" "$(head -c 1 /dev/$node 2>&1 >/dev/null </dev/null | tr '\n' ' ')"
    if [ -e /dev/$node ]; then
        show "open-write $node" "$( (: >/dev/$node) 2>&1 | tr '\n' ' ')"
    fi
done
for file in devices/devices.list memory/memory.limit_in_bytes cpu/cpu.shares cpu/cpu.cfs_quota_us \
    memory/memory.memsw.limit_in_bytes cpu/cpu.cfs_period_us cpuset/cpuset.cpus \
    cpuset/cpuset.mems pids/pids.max memory.max memory.swap.max cpu.max cpu.weight pids.max \
    memory/memory.swappiness memory/memory.oom_control blkio/blkio.weight; do
    [ ! -e /sys/fs/cgroup/$file ] ||
        sort /sys/fs/cgroup/$file | tr '\n' ' ' | { read -r all; show "cgroup $file" "$all"; }
done
while IFS=: read -r _ controllers path; do show "group $controllers" "$path"; done </proc/self/cgroup
for name in /sys/fs/cgroup/*; do show "cgroup-entry $name" "$(readlink "$name")"; done
for path in /proc/kcore /proc/keys /sys/firmware /proc/sysrq-trigger /proc/interrupts; do
    [ ! -e $path ] || show "kind $path" "$(stat -c '%F' $path)"
done
for path in / /proc/sys/kernel/shmmax /etc/hosts /sys/kernel /dev /dev/shm /rw /ro /rro/below; do
    [ ! -e $path ] || show "writable $path" "$([ -w $path ] && echo yes || echo no)"
done
show "mknod" "$(mknod /tmp/probe c 1 3 2>&1 && rm /tmp/probe)"
show processes "$([ "$(ls /proc | grep -c '^[0-9]')" -gt 20 ] && echo "the host's" || echo "its own")"
for name in /etc /etc/hosts /etc/resolv.conf /etc/hostname /dev /dev/pts /dev/shm /dev/mqueue /proc \
    /sys /rw /deep /deep/er; do
    [ ! -e $name ] || show "mode $name" "$(stat -c '%a %u %g' $name)"
done
show end yes
