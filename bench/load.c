/* A load generator for small requests: one thread, one epoll loop, connections that are kept alive.
 *
 * load small    PORT CONNECTIONS COUNT BYTES PAYLOAD SIZE CREATION PATCH
 * load creation PORT CONNECTIONS COUNT BYTES PAYLOAD SIZE CREATION
 * load head     PORT CONNECTIONS COUNT BYTES HEAD < paths, one a line
 *
 * BYTES is the length of each upload, PAYLOAD a descriptor of the file of SIZE bytes that the bodies are taken from,
 * CREATION the head of a creation, PATCH and HEAD what follows the path in the head of these requests. Every answer
 * must have the expected status and offset, or the first wrong one ends the program with a sentence on stderr. At the
 * end it prints a line for each operation in order: the seconds that it took and the path of its upload. */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 1024, MAX_ANSWER = 64 << 10, MAX_REQUEST = 64 << 10, MAX_PATH = 2048 };
enum { SILENCE_MILLISECONDS = 60000 };

enum kind { SMALL, CREATION, HEAD };

struct session {
    int socket;
    long number;   /* of the operation that runs */
    int patching;  /* whether the second request of a pair is on its way */
    double started;
    size_t received;
    char answer[MAX_ANSWER + 1];
    char path[MAX_PATH];
};

struct answer {
    int status;
    long offset;  /* -1: none was told */
    size_t size;  /* with the body */
    char location[MAX_PATH];
};

static enum kind kind;
static long count, next_number, bytes, payload_size, path_count;
static const char *payload, *first, *second;
static char **paths; /* of the uploads that HEAD asks for, or of those that were created */
static double *seconds;
static struct session sessions[MAX_CONNECTIONS];

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void *allocate(size_t items, size_t size) {
    void *memory = calloc(items, size);
    if (!memory) fail("out of memory");
    return memory;
}

/* Send a head, made of its three parts, and `length` bytes of a body, with one call of the kernel if it takes all. */
static void send_request(struct session *session, const char *start, const char *path, const char *rest,
                         const char *body, size_t length) {
    static char request[MAX_REQUEST];
    int head = snprintf(request, sizeof request, "%s%s%s", start, path, rest);
    if (head < 0 || (size_t)head + length > sizeof request) fail("a request is too long");
    if (length) memcpy(request + head, body, length);
    for (size_t sent = 0, size = (size_t)head + length; sent < size;) {
        ssize_t taken = send(session->socket, request + sent, size - sent, MSG_NOSIGNAL);
        if (taken < 0 && errno != EINTR) fail("sending failed: %s", strerror(errno));
        if (taken > 0) sent += (size_t)taken;
    }
}

static const char *body_of(const struct session *session) {
    return payload + session->number * bytes % (payload_size - bytes);
}

/* Start the next operation on a connection; return whether there was one. */
static int start_next(struct session *session) {
    if (next_number == count) return 0;
    session->number = next_number++;
    session->patching = 0;
    session->started = now();
    if (kind == HEAD)
        send_request(session, "HEAD ", paths[session->number % path_count], first, "", 0);
    else if (kind == CREATION)
        send_request(session, first, "", "", body_of(session), (size_t)bytes);
    else
        send_request(session, first, "", "", "", 0);
    return 1;
}

/* Return the value of a header field of a head that ends with a null byte; NULL if there is none. */
static const char *field(const char *head, const char *name) {
    size_t length = strlen(name);
    for (const char *line = head; (line = strstr(line, "\r\n"));) {
        line += 2;
        if (!strncasecmp(line, name, length) && line[length] == ':') {
            line += length + 1;
            return line + strspn(line, " \t");
        }
    }
    return NULL;
}

/* Copy the path of a URL, which may be one with a scheme and a host. */
static void copy_path(char *target, const char *url) {
    size_t length = strcspn(url, "\r\n");
    const char *scheme = strstr(url, "://");
    if (scheme && scheme < url + length) {
        const char *path = strchr(scheme + 3, '/');
        if (!path || path >= url + length) fail("a Location has no path");
        length -= (size_t)(path - url);
        url = path;
    }
    if (length >= MAX_PATH) fail("a Location is too long");
    memcpy(target, url, length);
    target[length] = 0;
}

/* Parse the answer at the start of what was received; return 0 while it is incomplete. */
static int parse(struct session *session, struct answer *answer) {
    session->answer[session->received] = 0;
    char *end = strstr(session->answer, "\r\n\r\n");
    if (!end) return 0;
    end[2] = 0; /* the last line keeps its end, so that it is found like the others */
    const char *offset = field(session->answer, "upload-offset");
    const char *location = field(session->answer, "location");
    const char *length = field(session->answer, "content-length");
    const char *coding = field(session->answer, "transfer-encoding");
    if (sscanf(session->answer, "HTTP/1.%*c %d", &answer->status) != 1) fail("an answer is not HTTP/1.1");
    answer->offset = offset ? atol(offset) : -1;
    answer->location[0] = 0;
    if (location) copy_path(answer->location, location);
    int chunked = coding && !strncasecmp(coding, "chunked", 7);
    answer->size = (size_t)(end + 4 - session->answer);
    end[2] = '\r';
    if (kind == HEAD || answer->status == 204 || answer->status == 304 || answer->status < 200) return 1;
    if (chunked) {
        char *last = strstr(end + 2, "\r\n0\r\n\r\n");
        if (!last) return 0;
        answer->size = (size_t)(last + 7 - session->answer);
        return 1;
    }
    answer->size += length ? (size_t)atol(length) : 0;
    return answer->size <= session->received;
}

static void check(const struct answer *answer, const char *what, int status, long offset) {
    if (answer->status != status) fail("%s was answered %d instead of %d", what, answer->status, status);
    if (offset >= 0 && answer->offset != offset)
        fail("%s was answered offset %ld instead of %ld", what, answer->offset, offset);
}

/* Check an answer, and send the second request of a pair or note the end of the operation; return whether it ended. */
static int handle(struct session *session, const struct answer *answer) {
    if (kind == HEAD) {
        check(answer, "a HEAD", 200, bytes);
    } else if (session->patching) {
        check(answer, "a small PATCH", 204, bytes);
    } else {
        check(answer, "a small creation", 201, kind == CREATION ? bytes : -1);
        if (!answer->location[0]) fail("a small creation was answered without a Location");
        strcpy(session->path, answer->location);
        if (kind == SMALL) {
            session->patching = 1;
            send_request(session, "PATCH ", session->path, second, body_of(session), (size_t)bytes);
            return 0;
        }
    }
    seconds[session->number] = now() - session->started;
    if (kind != HEAD && !(paths[session->number] = strdup(session->path))) fail("out of memory");
    return 1;
}

/* Read what has arrived and go on; return whether the connection has no more work. */
static int advance(struct session *session) {
    ssize_t arrived = recv(session->socket, session->answer + session->received, MAX_ANSWER - session->received, 0);
    if (arrived < 0 && errno == EINTR) return 0;
    if (arrived < 0) fail("receiving failed: %s", strerror(errno));
    if (!arrived) fail(session->received == MAX_ANSWER ? "an answer is too long" : "the server closed the connection");
    session->received += (size_t)arrived;
    struct answer answer;
    while (session->received && parse(session, &answer)) {
        session->received -= answer.size;
        memmove(session->answer, session->answer + answer.size, session->received);
        if (answer.status >= 200 && handle(session, &answer) && !start_next(session)) return 1;
    }
    return 0;
}

static int connect_to(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (connection < 0 || connect(connection, (struct sockaddr *)&address, sizeof address))
        fail("connecting failed: %s", strerror(errno));
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return connection;
}

static void run(int port, int connections) {
    int poll = epoll_create1(EPOLL_CLOEXEC), working = 0;
    if (poll < 0) fail("epoll: %s", strerror(errno));
    for (int number = 0; number < connections && next_number < count; number++, working++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &sessions[number]};
        sessions[number].socket = connect_to(port);
        if (epoll_ctl(poll, EPOLL_CTL_ADD, sessions[number].socket, &event)) fail("epoll: %s", strerror(errno));
        start_next(&sessions[number]);
    }
    while (working) {
        struct epoll_event events[MAX_CONNECTIONS];
        int ready = epoll_wait(poll, events, MAX_CONNECTIONS, SILENCE_MILLISECONDS);
        if (!ready) fail("no answer for %d s", SILENCE_MILLISECONDS / 1000);
        for (int number = 0; number < ready; number++) {
            struct session *session = events[number].data.ptr;
            if (advance(session)) {
                close(session->socket);
                working--;
            }
        }
    }
}

static void read_paths(void) {
    char line[MAX_PATH];
    paths = allocate((size_t)count, sizeof *paths);
    while (path_count < count && fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (!(paths[path_count++] = strdup(line))) fail("out of memory");
    }
    if (!path_count) fail("no paths were given");
}

int main(int argument_count, char **arguments) {
    static const char *const names[] = {"small", "creation", "head"};
    static const int needed[] = {10, 9, 7};
    for (kind = SMALL; kind <= HEAD && (argument_count < 2 || strcmp(arguments[1], names[kind])); kind++) {
    }
    if (kind > HEAD || argument_count != needed[kind]) fail("the arguments are wrong: see the head of load.c");
    int connections = atoi(arguments[3]);
    count = atol(arguments[4]);
    bytes = atol(arguments[5]);
    if (connections < 1 || connections > MAX_CONNECTIONS) fail("1 to %d connections", MAX_CONNECTIONS);
    seconds = allocate((size_t)count, sizeof *seconds);
    if (kind == HEAD) {
        first = arguments[6];
        read_paths();
    } else {
        payload_size = atol(arguments[7]);
        first = arguments[8];
        second = kind == SMALL ? arguments[9] : "";
        if (payload_size <= bytes) fail("the payload is too short");
        payload = mmap(NULL, (size_t)payload_size, PROT_READ, MAP_SHARED, atoi(arguments[6]), 0);
        if (payload == MAP_FAILED) fail("the payload cannot be mapped: %s", strerror(errno));
        paths = allocate((size_t)count, sizeof *paths);
    }
    run(atoi(arguments[2]), connections);
    for (long number = 0; number < count; number++)
        printf("%.6f %s\n", seconds[number], kind == HEAD ? paths[number % path_count] : paths[number]);
    return 0;
}
