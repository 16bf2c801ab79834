// Preloaded: a kernel that refuses packets which are written to a TUN device as one, with the errno in REFUSE, as some
// versions of Linux do.

#define _GNU_SOURCE
#include <errno.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_super_packet(int fd, const struct iovec *pieces, int count) {
  struct ifreq request;
  if (count == 0 || pieces[0].iov_len < sizeof(struct virtio_net_hdr) || ioctl(fd, TUNGETIFF, &request) != 0)
    return 0;
  const struct virtio_net_hdr *header = pieces[0].iov_base;
  return header->gso_type != VIRTIO_NET_HDR_GSO_NONE;
}

ssize_t writev(int fd, const struct iovec *pieces, int count) {
  const char *refuse = getenv("REFUSE");
  int before = errno;
  if (refuse && is_super_packet(fd, pieces, count)) {
    errno = atoi(refuse);
    return -1;
  }
  errno = before;
  return syscall(SYS_writev, fd, pieces, count);
}
