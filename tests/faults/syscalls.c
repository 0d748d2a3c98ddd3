/* System calls that fail, stall or lie, for one process and its children: an LD_PRELOAD library.
 *
 * The file named by TUSD_PY_FAULTS holds one rule a line and is read at every call, so that a test changes the faults
 * of a running server:
 *
 *     ID CALL[,CALL...] ACTION SKIP TIMES PATTERN
 *
 * A rule applies to calls whose path matches the glob PATTERN (`*` matches `/` too); the path of a descriptor is
 * what /proc/self/fd says. The first SKIP matching calls of the process pass, the next TIMES are affected (0: all).
 * Actions: `error:N` (errno N), `lose:N` (of a sync: what the process wrote since its last good one becomes zeros,
 * then errno N, as after a device error that the page cache forgets), `stall` and `stall-after` (before or after the real call, until the rule has gone from
 * the file), `slow:N` (N milliseconds, then the call), `drop` (success without the call), `short:N` (writes at most N
 * bytes), `kill` and `kill-after` (SIGKILL).
 *
 * Every affected call appends `ID PID CALL PHASE PATH` to the file named by TUSD_PY_FAULTS with `.log` at its end:
 * PHASE is `begin` where the fault begins, `end` where a stall has ended.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MOST_RULES 64
#define LARGEST_FILE 16384

struct rule {
    char id[32], calls[256], action[32], pattern[PATH_MAX];
    long skip, times;
};

struct count {
    char id[32];
    long seen;
};

enum effect { PASS, FAIL, DROP };

/* The bytes of a file that this process has written and not synced yet. */
struct dirty {
    dev_t device;
    ino_t inode;
    off_t start, end;
};

#define MOST_DIRTY 4096

static struct dirty dirty_files[MOST_DIRTY];
static pthread_mutex_t marking = PTHREAD_MUTEX_INITIALIZER;

static struct count counts[MOST_RULES];
static pthread_mutex_t counting = PTHREAD_MUTEX_INITIALIZER;

static const char *rules_file(void) {
    static const char *path;
    if (!path) path = getenv("TUSD_PY_FAULTS");
    return path;
}

static size_t read_rules(char *text) {
    long descriptor = syscall(SYS_openat, AT_FDCWD, rules_file(), O_RDONLY | O_CLOEXEC, 0);
    if (descriptor < 0) return 0;
    long size = syscall(SYS_read, descriptor, text, LARGEST_FILE - 1);
    syscall(SYS_close, descriptor);
    text[size > 0 ? size : 0] = 0;
    return size > 0 ? (size_t)size : 0;
}

static void report(const struct rule *rule, const char *call, const char *phase, const char *path) {
    char name[PATH_MAX], line[PATH_MAX + 128];
    snprintf(name, sizeof name, "%s.log", rules_file());
    int size = snprintf(line, sizeof line, "%s %d %s %s %s\n", rule->id, (int)getpid(), call, phase, path);
    long descriptor = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (descriptor < 0) return;
    syscall(SYS_write, descriptor, line, (size_t)size);
    syscall(SYS_close, descriptor);
}

static void pause_milliseconds(long milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    syscall(SYS_nanosleep, &time, NULL);
}

static int is_there(const struct rule *rule) {
    char text[LARGEST_FILE], id[40];
    if (!read_rules(text)) return 0;
    snprintf(id, sizeof id, "%s ", rule->id);
    for (char *line = text; line; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        if (!strncmp(line, id, strlen(id))) return 1;
    }
    return 0;
}

static int names(const char *calls, const char *call) {
    size_t length = strlen(call);
    for (const char *found = strstr(calls, call); found; found = strstr(found + 1, call))
        if ((found == calls || found[-1] == ',') && (found[length] == ',' || !found[length])) return 1;
    /* `*` names what stores bytes; a splice is a pwritev. */
    return !strcmp(calls, "*") && strcmp(call, "splice") && strcmp(call, "pipe2");
}

static long next_number(const char *id) {
    long seen = 0;
    pthread_mutex_lock(&counting);
    for (int i = 0; i < MOST_RULES; i++) {
        if (!counts[i].id[0]) snprintf(counts[i].id, sizeof counts[i].id, "%s", id);
        if (!strcmp(counts[i].id, id)) {
            seen = counts[i].seen++;
            break;
        }
    }
    pthread_mutex_unlock(&counting);
    return seen;
}

/* The rule that applies to this call, if there is one. */
static int find(const char *call, const char *path, struct rule *rule) {
    char text[LARGEST_FILE];
    if (!rules_file() || !read_rules(text)) return 0;
    char *state = NULL;
    for (char *line = strtok_r(text, "\n", &state); line; line = strtok_r(NULL, "\n", &state)) {
        int fields = sscanf(line, "%31s %255s %31s %ld %ld %4095[^\n]", rule->id, rule->calls, rule->action,
                            &rule->skip, &rule->times, rule->pattern);
        if (fields != 6 || !names(rule->calls, call) || fnmatch(rule->pattern, path, 0)) continue;
        long number = next_number(rule->id);
        if (number >= rule->skip && (!rule->times || number < rule->skip + rule->times)) return 1;
    }
    return 0;
}

static void stall(const struct rule *rule, const char *call, const char *path) {
    report(rule, call, "begin", path);
    while (is_there(rule)) pause_milliseconds(5);
    report(rule, call, "end", path);
}

static struct dirty *dirty_entry(int descriptor) {
    struct stat status;
    if (fstat(descriptor, &status) || !S_ISREG(status.st_mode)) return NULL;
    struct dirty *unused = NULL;
    for (int i = 0; i < MOST_DIRTY; i++) {
        struct dirty *entry = &dirty_files[i];
        if (entry->end > entry->start) {
            if (entry->device == status.st_dev && entry->inode == status.st_ino) return entry;
        } else if (!unused) {
            unused = entry;
        }
    }
    if (unused) *unused = (struct dirty){status.st_dev, status.st_ino, 0, 0};
    return unused;
}

/* After a write of `size` bytes at `offset`. */
static void mark_dirty(int descriptor, off_t offset, ssize_t size) {
    if (size <= 0 || !rules_file()) return;
    int error = errno;
    pthread_mutex_lock(&marking);
    struct dirty *entry = dirty_entry(descriptor);
    if (entry && entry->end == entry->start) {
        entry->start = offset;
        entry->end = offset + size;
    } else if (entry) {
        if (offset < entry->start) entry->start = offset;
        if (offset + size > entry->end) entry->end = offset + size;
    }
    pthread_mutex_unlock(&marking);
    errno = error;
}

/* After a sync: its bytes are safe, or with `lose` zeros. */
static void mark_clean(int descriptor, int lose) {
    static const char zeros[65536];
    int error = errno;
    pthread_mutex_lock(&marking);
    struct dirty *entry = rules_file() ? dirty_entry(descriptor) : NULL;
    struct stat status;
    if (entry && lose && !fstat(descriptor, &status)) {
        off_t end = entry->end < status.st_size ? entry->end : status.st_size;
        for (off_t at = entry->start; at < end; at += sizeof zeros) {
            size_t size = end - at < (off_t)sizeof zeros ? (size_t)(end - at) : sizeof zeros;
            syscall(SYS_pwrite64, descriptor, zeros, size, at);
        }
    }
    if (entry) entry->end = entry->start;
    pthread_mutex_unlock(&marking);
    errno = error;
}

static int synced(int descriptor, int result, const struct rule *rule) {
    if (!strncmp(rule->action, "lose:", 5)) {
        mark_clean(descriptor, 1);
        errno = atoi(rule->action + 5);
        return -1;
    }
    if (!result) mark_clean(descriptor, 0);
    return result;
}

static ssize_t written(int descriptor, off_t offset, ssize_t size) {
    mark_dirty(descriptor, offset, size);
    return size;
}

/* Before the real call. */
static enum effect before(const struct rule *rule, const char *call, const char *path) {
    if (!strcmp(rule->action, "stall")) {
        stall(rule, call, path);
        return PASS;
    }
    if (!strcmp(rule->action, "stall-after") || !strcmp(rule->action, "kill-after")) return PASS;
    report(rule, call, "begin", path);
    if (!strncmp(rule->action, "slow:", 5)) pause_milliseconds(atol(rule->action + 5));
    if (!strcmp(rule->action, "kill")) kill(getpid(), SIGKILL);
    if (!strcmp(rule->action, "drop")) return DROP;
    if (!strncmp(rule->action, "error:", 6)) {
        errno = atoi(rule->action + 6);
        return FAIL;
    }
    return PASS;
}

static void after(const struct rule *rule, const char *call, const char *path) {
    int error = errno;
    if (!strcmp(rule->action, "stall-after")) stall(rule, call, path);
    if (!strcmp(rule->action, "kill-after")) {
        report(rule, call, "begin", path);
        kill(getpid(), SIGKILL);
    }
    errno = error;
}

static size_t most_bytes(const struct rule *rule, size_t size) {
    if (strncmp(rule->action, "short:", 6)) return size;
    size_t most = (size_t)atol(rule->action + 6);
    return size < most ? size : most;
}

static const char *path_of_descriptor(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    long size = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[size > 0 ? size : 0] = 0;
    return path;
}

static const char *whole_path(int folder, const char *name, char *path) {
    char start[PATH_MAX];
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
    } else {
        if (folder != AT_FDCWD) path_of_descriptor(folder, start);
        else if (syscall(SYS_getcwd, start, sizeof start) < 0) start[0] = 0;
        snprintf(path, PATH_MAX, "%s/%s", start, name);
    }
    return path;
}

/* `CALL` with its fault: `failed` is the value of an error, `done` that of success without the call. */
#define WITH_FAULT(name, path, type, failed, done, call)      \
    struct rule rule;                                         \
    int error = errno;                                        \
    rule.action[0] = 0;                                       \
    if (!find(name, path, &rule)) {                           \
        errno = error;                                        \
        rule.action[0] = 0;                                   \
        return call;                                          \
    }                                                         \
    errno = error;                                            \
    switch (before(&rule, name, path)) {                      \
    case FAIL: return failed;                                 \
    case DROP: return done;                                   \
    case PASS: break;                                         \
    }                                                         \
    type result = call;                                       \
    after(&rule, name, path);                                 \
    return result;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

static size_t total(const struct iovec *vector, int count) {
    size_t size = 0;
    for (int i = 0; i < count; i++) size += vector[i].iov_len;
    return size;
}

static ssize_t write_vector(int descriptor, const struct iovec *vector, int count, off_t offset, int flags,
                            const struct rule *rule) {
    size_t most = most_bytes(rule, total(vector, count));
    if (most < total(vector, count)) {
        size_t size = vector[0].iov_len < most ? vector[0].iov_len : most;
        return written(descriptor, offset, syscall(SYS_pwrite64, descriptor, vector[0].iov_base, size, offset));
    }
    return written(descriptor, offset, REAL(pwritev2)(descriptor, vector, count, offset, flags));
}

ssize_t pwritev2(int descriptor, const struct iovec *vector, int count, off_t offset, int flags) {
    char path[PATH_MAX];
    path_of_descriptor(descriptor, path);
    WITH_FAULT("pwritev", path, ssize_t, -1, (ssize_t)total(vector, count),
               write_vector(descriptor, vector, count, offset, flags, &rule))
}

ssize_t pwritev(int descriptor, const struct iovec *vector, int count, off_t offset) {
    return pwritev2(descriptor, vector, count, offset, 0);
}

ssize_t pwritev64(int descriptor, const struct iovec *vector, int count, off64_t offset) {
    return pwritev2(descriptor, vector, count, offset, 0);
}

ssize_t pwritev64v2(int descriptor, const struct iovec *vector, int count, off64_t offset, int flags) {
    return pwritev2(descriptor, vector, count, offset, flags);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset) {
    char path[PATH_MAX];
    path_of_descriptor(descriptor, path);
    WITH_FAULT("pwrite", path, ssize_t, -1, (ssize_t)size,
               syscall(SYS_pwrite64, descriptor, data, most_bytes(&rule, size), offset))
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    return pwrite(descriptor, data, size, offset);
}

static ssize_t drop_bytes(int source, size_t size) {
    char bytes[65536];
    ssize_t dropped = 0;
    while (size) {
        ssize_t count = syscall(SYS_read, source, bytes, size < sizeof bytes ? size : sizeof bytes);
        if (count <= 0) break;
        size -= count;
        dropped += count;
    }
    return dropped;
}

static int is_file(int descriptor) {
    struct stat status;
    return !fstat(descriptor, &status) && S_ISREG(status.st_mode);
}

static ssize_t splice_to_file(int source, int target, off64_t *target_offset, size_t size, unsigned int flags,
                              const char *path) {
    off_t offset = target_offset ? *target_offset : 0;
    WITH_FAULT("pwritev", path, ssize_t, -1, drop_bytes(source, size),
               written(target, offset, REAL(splice)(source, NULL, target, target_offset, most_bytes(&rule, size),
                                                    flags)))
}

/* Another way to write: a splice to a file has the faults of pwritev, and those of its own name. */
ssize_t splice(int source, off64_t *source_offset, int target, off64_t *target_offset, size_t size,
               unsigned int flags) {
    char path[PATH_MAX];
    if (!is_file(target)) return REAL(splice)(source, source_offset, target, target_offset, size, flags);
    path_of_descriptor(target, path);
    WITH_FAULT("splice", path, ssize_t, -1, drop_bytes(source, size),
               splice_to_file(source, target, target_offset, size, flags, path))
}

/* Its path is `pipe`. */
int pipe2(int descriptors[2], int flags) {
    WITH_FAULT("pipe2", "pipe", int, -1, -1, REAL(pipe2)(descriptors, flags))
}

ssize_t write(int descriptor, const void *data, size_t size) {
    char path[PATH_MAX];
    path_of_descriptor(descriptor, path);
    WITH_FAULT("write", path, ssize_t, -1, (ssize_t)size, REAL(write)(descriptor, data, most_bytes(&rule, size)))
}

int fsync(int descriptor) {
    char path[PATH_MAX];
    path_of_descriptor(descriptor, path);
    WITH_FAULT("fsync", path, int, -1, 0, synced(descriptor, REAL(fsync)(descriptor), &rule))
}

int fdatasync(int descriptor) {
    char path[PATH_MAX];
    path_of_descriptor(descriptor, path);
    WITH_FAULT("fdatasync", path, int, -1, 0, synced(descriptor, REAL(fdatasync)(descriptor), &rule))
}

int ftruncate(int descriptor, off_t length) {
    char path[PATH_MAX];
    path_of_descriptor(descriptor, path);
    WITH_FAULT("ftruncate", path, int, -1, 0, (int)syscall(SYS_ftruncate, descriptor, length))
}

int ftruncate64(int descriptor, off64_t length) {
    return ftruncate(descriptor, length);
}

/* The path is that of the target. */
ssize_t copy_file_range(int source, off64_t *source_offset, int target, off64_t *target_offset, size_t size,
                        unsigned int flags) {
    char path[PATH_MAX];
    path_of_descriptor(target, path);
    WITH_FAULT("copy_file_range", path, ssize_t, -1, (ssize_t)size,
               REAL(copy_file_range)(source, source_offset, target, target_offset, most_bytes(&rule, size), flags))
}

int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    whole_path(folder, name, path);
    WITH_FAULT("unlink", path, int, -1, 0, (int)syscall(SYS_unlinkat, folder, name, flags))
}

int unlink(const char *name) {
    return unlinkat(AT_FDCWD, name, 0);
}

/* The path is that of the new name. */
int renameat(int folder, const char *name, int new_folder, const char *new_name) {
    char path[PATH_MAX];
    whole_path(new_folder, new_name, path);
    WITH_FAULT("rename", path, int, -1, 0, REAL(renameat)(folder, name, new_folder, new_name))
}

int rename(const char *name, const char *new_name) {
    return renameat(AT_FDCWD, name, AT_FDCWD, new_name);
}

int linkat(int folder, const char *name, int new_folder, const char *new_name, int flags) {
    char path[PATH_MAX];
    whole_path(new_folder, new_name, path);
    WITH_FAULT("link", path, int, -1, 0, (int)syscall(SYS_linkat, folder, name, new_folder, new_name, flags))
}

int link(const char *name, const char *new_name) {
    return linkat(AT_FDCWD, name, AT_FDCWD, new_name, 0);
}

int mkdir(const char *name, mode_t mode) {
    char path[PATH_MAX];
    whole_path(AT_FDCWD, name, path);
    WITH_FAULT("mkdir", path, int, -1, 0, REAL(mkdir)(name, mode))
}

static int open_at(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    whole_path(folder, name, path);
    WITH_FAULT("open", path, int, -1, -1, (int)syscall(SYS_openat, folder, name, flags, mode))
}

#define MODE(flags)                                  \
    mode_t mode = 0;                                 \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {         \
        va_list arguments;                           \
        va_start(arguments, flags);                  \
        mode = va_arg(arguments, mode_t);            \
        va_end(arguments);                           \
    }

int open(const char *name, int flags, ...) {
    MODE(flags)
    return open_at(AT_FDCWD, name, flags, mode);
}

int open64(const char *name, int flags, ...) {
    MODE(flags)
    return open_at(AT_FDCWD, name, flags, mode);
}

int openat(int folder, const char *name, int flags, ...) {
    MODE(flags)
    return open_at(folder, name, flags, mode);
}

int openat64(int folder, const char *name, int flags, ...) {
    MODE(flags)
    return open_at(folder, name, flags, mode);
}
