/* A wall clock that is wrong, for one process and its children: an LD_PRELOAD library.
 *
 * The file named by TUSD_PY_CLOCK holds by how many seconds (a decimal number, perhaps negative), and is read at every
 * call, so that a test sets the clock of a running server. The monotonic clocks stay right.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static double wrong_by(void) {
    const char *path = getenv("TUSD_PY_CLOCK");
    if (!path) return 0;
    char text[64];
    long file = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (file < 0) return 0;
    long size = syscall(SYS_read, (int)file, text, sizeof text - 1);
    syscall(SYS_close, (int)file);
    if (size <= 0) return 0;
    text[size] = 0;
    return strtod(text, NULL);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    long result = syscall(SYS_clock_gettime, id, now);
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        double offset = wrong_by(), whole = floor(offset);
        now->tv_sec += (time_t)whole;
        now->tv_nsec += (long)((offset - whole) * 1e9);
        if (now->tv_nsec >= 1000000000) {
            now->tv_sec++;
            now->tv_nsec -= 1000000000;
        }
    }
    return (int)result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    if (result == 0) {
        now->tv_sec = exact.tv_sec;
        now->tv_usec = exact.tv_nsec / 1000;
    }
    return result;
}

time_t time(time_t *where) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (where) *where = exact.tv_sec;
    return exact.tv_sec;
}
