/* Faults at enumerated system calls: a library to preload, which counts the calls that change files
 * below one folder and, at the n-th of them, kills the process or fails.
 *
 *   "kill"   SIGKILL in place of the call
 *   "torn"   SIGKILL after half of the bytes of a write; other calls as "kill"
 *   "EIO"    this one call fails; of a write, after half of the bytes
 *   "ENOSPC" likewise, and from then on every call that needs room on the disk
 *   "EROFS"  this call and all later ones fail, as where nothing may be written
 *
 * Calls are counted whoever makes them through libc, Python or its C and Rust modules. One is made
 * past it: safetensors' rename of its own temporary file, within the temporary checkpoint.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static char mode[16];
static long count, target;
static int log_file = -1;
static int full; /* the disk, from the n-th call on */

static ssize_t raw_write(int fd, const void *data, size_t size) {
  static ssize_t (*next)(int, const void *, size_t);
  if (!next) next = dlsym(RTLD_NEXT, "write");
  return next(fd, data, size);
}

/* Begin to count; n < 1: only count. Each call is noted in the file `log`. */
void faults_arm(const char *folder, const char *how, long n, const char *log) {
  root[0] = 0;
  log_file = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  strncpy(mode, how, sizeof mode - 1);
  count = 0, full = 0, target = n;
  strncpy(root, folder, sizeof root - 1);
}

static int below(int folder, const char *path) {
  char whole[PATH_MAX] = "", link[64];
  size_t size = strlen(root);
  if (!size) return 0;
  if (path && path[0] == '/') return !strncmp(path, root, size);
  if (folder == AT_FDCWD) return 0; /* the tests give absolute paths */
  snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
  return readlink(link, whole, sizeof whole - 1) > 0 && !strncmp(whole, root, size);
}

static int counted(const char *call, int folder, const char *path, int takes_room) {
  char line[PATH_MAX + 64];
  count++;
  int known = errno;
  char link[64], name[PATH_MAX] = "";
  if (!path) {
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    if (readlink(link, name, sizeof name - 1) < 0) name[0] = 0;
  }
  int size = snprintf(line, sizeof line, "%s %s\n", call, path ? path : name);
  raw_write(log_file, line, size);
  errno = known;
  if (full && takes_room) return errno = ENOSPC, 1;
  if (!strcmp(mode, "EROFS") && count >= target) return errno = EROFS, 1;
  if (count != target) return 0;
  if (!strcmp(mode, "EIO")) return errno = EIO, 1;
  if (!strcmp(mode, "ENOSPC")) return full = 1, takes_room ? (errno = ENOSPC, 1) : 0;
  if (strcmp(mode, "torn") || strncmp(call, "write", 5)) kill(getpid(), SIGKILL);
  return 1;
}

/* Count a call below the folder; return whether it is to fail, errno being set. */
static int strikes(const char *call, int folder, const char *path, int takes_room) {
  static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
  if (!below(folder, path)) return 0;
  pthread_mutex_lock(&one_at_a_time);
  int fails = counted(call, folder, path, takes_room), reason = errno;
  pthread_mutex_unlock(&one_at_a_time);
  return errno = reason, fails;
}

#define NEXT(name, ...)                            \
  static __typeof__(name) *next;                   \
  if (!next) next = dlsym(RTLD_NEXT, #name);       \
  return next(__VA_ARGS__)

ssize_t write(int fd, const void *data, size_t size) {
  int was_full = full;
  if (strikes("write", fd, NULL, 1)) {
    int reason = errno;
    if (!was_full && reason != EROFS && size > 1) raw_write(fd, data, size / 2);
    if (!strcmp(mode, "torn")) kill(getpid(), SIGKILL);
    return errno = reason, -1;
  }
  return raw_write(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
  if (strikes("writev", fd, NULL, 1)) {
    int reason = errno;
    if (n) raw_write(fd, parts[0].iov_base, parts[0].iov_len / 2);
    if (!strcmp(mode, "torn")) kill(getpid(), SIGKILL);
    return errno = reason, -1;
  }
  NEXT(writev, fd, parts, n);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  if (strikes("pwrite", fd, NULL, 1)) return -1;
  NEXT(pwrite64, fd, data, size, at);
}

#define OPEN(name, arguments, folder, ...)                                \
  int name arguments {                                                    \
    mode_t permission = 0;                                                \
    if (flags & (O_CREAT | O_TMPFILE)) {                                  \
      va_list more;                                                       \
      va_start(more, flags);                                              \
      permission = va_arg(more, mode_t);                                  \
      va_end(more);                                                       \
    }                                                                     \
    if (flags & (O_CREAT | O_TRUNC) && strikes("open", folder, path, 1))  \
      return -1;                                                          \
    NEXT(name, __VA_ARGS__, flags, permission);                           \
  }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(openat, (int folder, const char *path, int flags, ...), folder, folder, path)
OPEN(openat64, (int folder, const char *path, int flags, ...), folder, folder, path)

#define CALL(name, arguments, folder, path, room, ...)          \
  int name arguments {                                          \
    if (strikes(#name, folder, path, room)) return -1;          \
    NEXT(name, __VA_ARGS__);                                    \
  }
CALL(fsync, (int fd), fd, NULL, 0, fd)
CALL(fdatasync, (int fd), fd, NULL, 0, fd)
CALL(ftruncate, (int fd, off_t size), fd, NULL, 1, fd, size)
CALL(ftruncate64, (int fd, off64_t size), fd, NULL, 1, fd, size)
CALL(truncate, (const char *path, off_t size), AT_FDCWD, path, 1, path, size)
CALL(truncate64, (const char *path, off64_t size), AT_FDCWD, path, 1, path, size)
CALL(rename, (const char *old, const char *new), AT_FDCWD, old, 0, old, new)
CALL(renameat, (int from, const char *old, int to, const char *new), from, old, 0, from, old, to,
     new)
CALL(renameat2, (int from, const char *old, int to, const char *new, unsigned flags), from, old, 0,
     from, old, to, new, flags)
CALL(link, (const char *old, const char *new), AT_FDCWD, new, 1, old, new)
CALL(linkat, (int from, const char *old, int to, const char *new, int flags), to, new, 1, from,
     old, to, new, flags)
CALL(symlink, (const char *old, const char *new), AT_FDCWD, new, 1, old, new)
CALL(unlink, (const char *path), AT_FDCWD, path, 0, path)
CALL(unlinkat, (int folder, const char *path, int flags), folder, path, 0, folder, path, flags)
CALL(mkdir, (const char *path, mode_t permission), AT_FDCWD, path, 1, path, permission)
CALL(mkdirat, (int folder, const char *path, mode_t permission), folder, path, 1, folder, path,
     permission)
CALL(rmdir, (const char *path), AT_FDCWD, path, 0, path)
CALL(chmod, (const char *path, mode_t permission), AT_FDCWD, path, 0, path, permission)
CALL(fchmod, (int fd, mode_t permission), fd, NULL, 0, fd, permission)
CALL(fchmodat, (int folder, const char *path, mode_t permission, int flags), folder, path, 0,
     folder, path, permission, flags)
