/* SPDX-License-Identifier: Apache-2.0
 * Looks for a key of the type "user" in the session keyring, as a container's process finds it.
 */
#include <linux/keyctl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **words) {
    char payload[256];
    long key, size;

    if (count != 2)
        return 2;
    key = syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user", words[1], 0L);
    size = key < 0 ? -1 : syscall(SYS_keyctl, KEYCTL_READ, key, payload, sizeof payload);
    if (size < 0)
        puts("no key");
    else
        printf("key: %.*s\n", (int)size, payload);
    return 0;
}
