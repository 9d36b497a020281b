/* Lets a test set the wall clock of a process, by LD_PRELOAD.
 *
 * chaos_clock(path) maps a file with one double: seconds that are added to the time of day. Whoever
 * writes the file moves the clock of the process. The monotonic clock stays as it is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile double *offset;

int chaos_clock(const char *path) {
    int file = open(path, O_RDONLY);
    if (file < 0) return -1;
    void *mapped = mmap(0, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) return -1;
    offset = mapped;
    return 0;
}

static void shift(time_t *seconds, long *fraction, long unit) {
    double whole = offset ? floor(*offset) : 0;
    double part = offset ? *offset - whole : 0;
    *seconds += (time_t)whole;
    *fraction += (long)(part * unit);
    if (*fraction >= unit) { *fraction -= unit; *seconds += 1; }
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (!status && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        shift(&now->tv_sec, &now->tv_nsec, 1000000000L);
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int status = real(now, zone);
    if (!status) { long part = now->tv_usec; shift(&now->tv_sec, &part, 1000000L); now->tv_usec = part; }
    return status;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
