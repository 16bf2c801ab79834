// One TLS connection of mbedTLS: stdin goes to the peer, and what the peer sends to stdout. The end of stdin is a
// close_notify. The program ends well when the peer has sent one.
//
// usage: mbedtls client VERSION PORT
//        mbedtls server VERSION      prints the port that it listens on

#include <arpa/inet.h>
#include <mbedtls/error.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>
#include <poll.h>
#include <psa/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned char buffer[16384];

static int check(int result, const char* what) {
  if (result >= 0) return result;
  char text[128];
  mbedtls_strerror(result, text, sizeof(text));
  fprintf(stderr, "%s: %s\n", what, text);
  exit(1);
}

static int random_bytes(void* unused, unsigned char* out, size_t size) {
  return psa_generate_random(out, size) == PSA_SUCCESS ? 0 : -1;
}

static void write_all(mbedtls_ssl_context* ssl, int socket, size_t size) {
  struct pollfd writable = {.fd = socket, .events = POLLOUT};
  for (size_t done = 0; done < size;) {
    int result = mbedtls_ssl_write(ssl, buffer + done, size - done);
    if (result == MBEDTLS_ERR_SSL_WANT_WRITE) {
      poll(&writable, 1, -1);
    } else {
      done += check(result, "mbedtls_ssl_write");
    }
  }
}

// Whether stdin goes on.
static int send_input(mbedtls_ssl_context* ssl, int socket) {
  ssize_t size = read(STDIN_FILENO, buffer, sizeof(buffer));
  if (size > 0) {
    write_all(ssl, socket, size);
    return 1;
  }
  check(mbedtls_ssl_close_notify(ssl), "mbedtls_ssl_close_notify");
  return 0;
}

// Until the peer has ended, and said so.
static void relay(mbedtls_ssl_context* ssl, int socket) {
  struct pollfd fds[] = {{.fd = socket, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
  for (;;) {
    int size = mbedtls_ssl_read(ssl, buffer, sizeof(buffer));
    if (size == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY) break;
    if (size == MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET) continue;
    if (size == MBEDTLS_ERR_SSL_WANT_READ) {
      poll(fds, 2, -1);
      if (fds[1].revents && !send_input(ssl, socket)) fds[1].fd = -1;
      continue;
    }
    check(size == 0 ? MBEDTLS_ERR_SSL_CONN_EOF : size, "mbedtls_ssl_read");
    if (fwrite(buffer, 1, size, stdout) != (size_t)size || fflush(stdout) != 0) exit(1);
  }
  if (fds[1].fd >= 0) check(mbedtls_ssl_close_notify(ssl), "mbedtls_ssl_close_notify");
}

static void accept_one(mbedtls_net_context* net) {
  mbedtls_net_context listener;
  mbedtls_net_init(&listener);
  check(mbedtls_net_bind(&listener, "127.0.0.1", "0", MBEDTLS_NET_PROTO_TCP), "mbedtls_net_bind");
  struct sockaddr_in address;
  socklen_t size = sizeof(address);
  getsockname(listener.fd, (struct sockaddr*)&address, &size);
  fprintf(stderr, "listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
  check(mbedtls_net_accept(&listener, net, NULL, 0, NULL), "mbedtls_net_accept");
}

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  int is_client = strcmp(argv[1], "client") == 0;
  int version = strcmp(argv[2], "TLSv1.3") == 0 ? MBEDTLS_SSL_VERSION_TLS1_3 : MBEDTLS_SSL_VERSION_TLS1_2;
  mbedtls_net_context net;
  mbedtls_ssl_context ssl;
  mbedtls_ssl_config config;
  mbedtls_x509_crt ca, own;
  mbedtls_pk_context key;
  mbedtls_net_init(&net);
  mbedtls_ssl_init(&ssl);
  mbedtls_ssl_config_init(&config);
  mbedtls_x509_crt_init(&ca);
  mbedtls_x509_crt_init(&own);
  mbedtls_pk_init(&key);
  if (psa_crypto_init() != PSA_SUCCESS) return 1;

  check(mbedtls_x509_crt_parse_file(&ca, "ca.pem"), "ca.pem");
  check(mbedtls_x509_crt_parse_file(&own, "localhost.pem"), "localhost.pem");
  check(mbedtls_pk_parse_keyfile(&key, "localhost.key", NULL, random_bytes, NULL), "localhost.key");
  check(mbedtls_ssl_config_defaults(&config, is_client ? MBEDTLS_SSL_IS_CLIENT : MBEDTLS_SSL_IS_SERVER,
                                    MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT),
        "mbedtls_ssl_config_defaults");
  mbedtls_ssl_conf_rng(&config, random_bytes, NULL);
  mbedtls_ssl_conf_min_tls_version(&config, version);
  mbedtls_ssl_conf_max_tls_version(&config, version);
  mbedtls_ssl_conf_ca_chain(&config, &ca, NULL);
  if (!is_client) check(mbedtls_ssl_conf_own_cert(&config, &own, &key), "mbedtls_ssl_conf_own_cert");
  check(mbedtls_ssl_setup(&ssl, &config), "mbedtls_ssl_setup");

  if (is_client) {
    check(mbedtls_ssl_set_hostname(&ssl, "localhost"), "mbedtls_ssl_set_hostname");
    check(mbedtls_net_connect(&net, "127.0.0.1", argv[3], MBEDTLS_NET_PROTO_TCP), "mbedtls_net_connect");
  } else {
    accept_one(&net);
  }
  mbedtls_ssl_set_bio(&ssl, &net, mbedtls_net_send, mbedtls_net_recv, NULL);
  check(mbedtls_ssl_handshake(&ssl), "mbedtls_ssl_handshake");
  check(mbedtls_net_set_nonblock(&net), "mbedtls_net_set_nonblock");
  relay(&ssl, net.fd);
  return 0;
}
