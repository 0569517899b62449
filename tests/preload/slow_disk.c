// Imitates a disk with a rate of SLOW_DISK_BYTES_PER_SEC for a program that is started with this library
// in LD_PRELOAD. Writing takes no time, as with enough free memory, but a flush takes the time for all
// bytes that were written since the last one.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_FILES 1024
static size_t unflushed[MAX_FILES];

ssize_t write(int fd, const void *bytes, size_t count) {
    static ssize_t (*next)(int, const void *, size_t);
    if (!next) next = dlsym(RTLD_NEXT, "write");
    ssize_t written = next(fd, bytes, count);
    struct stat about;
    if (written > 0 && fd >= 0 && fd < MAX_FILES && !fstat(fd, &about) && S_ISREG(about.st_mode))
        unflushed[fd] += written;
    return written;
}

static void wait_for_disk(int fd) {
    if (fd < 0 || fd >= MAX_FILES || !unflushed[fd]) return;
    double secs = unflushed[fd] / atof(getenv("SLOW_DISK_BYTES_PER_SEC"));
    struct timespec left = {(time_t)secs, (long)(1e9 * (secs - (time_t)secs))};
    while (nanosleep(&left, &left)) {}
    unflushed[fd] = 0;
}

int fsync(int fd) {
    static int (*next)(int);
    if (!next) next = dlsym(RTLD_NEXT, "fsync");
    wait_for_disk(fd);
    return next(fd);
}

int fdatasync(int fd) {
    static int (*next)(int);
    if (!next) next = dlsym(RTLD_NEXT, "fdatasync");
    wait_for_disk(fd);
    return next(fd);
}

int close(int fd) {
    static int (*next)(int);
    if (!next) next = dlsym(RTLD_NEXT, "close");
    if (fd >= 0 && fd < MAX_FILES) unflushed[fd] = 0;
    return next(fd);
}
