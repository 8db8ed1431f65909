/* Stands in for the kernel's getrandom(2) in programs of this crate, and in no other program.
 *
 * A seed has to mean the same run each time. Simulated time and the simulated network are drawn from it, but some of what
 * a program does hangs on numbers that it takes from the kernel: the order of a HashMap, and which branch of a `select!`
 * or which waiter tokio takes first when there are several. Here every thread gets the same numbers, in the same order.
 */
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

static _Thread_local uint64_t state = 0x9e3779b97f4a7c15u;

ssize_t getrandom(void *buffer, size_t length, unsigned int flags) {
    (void)flags;
    unsigned char *bytes = buffer;
    for (size_t i = 0; i < length; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        bytes[i] = (unsigned char)(state >> 56);
    }
    return (ssize_t)length;
}
