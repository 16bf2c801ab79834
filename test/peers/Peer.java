import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.Arrays;
import java.util.Base64;
import java.util.List;
import java.util.concurrent.FutureTask;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SNIHostName;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

/**
 * One end of TLS connections, as Java programs have it. In each of them it sends the file `sent` and gets the file
 * `other`, in the current directory, and ends it in one of these ways:
 *
 *   close   SSLSocket.close() when all has been sent and got: user_canceled and close_notify with TLS 1.3, then FIN
 *   open    the same, but the TCP connection stays open until the other side has ended
 *   half    shutdownOutput() when all has been sent; the other side sends after that
 *   last    close() after the other side has ended; with TLS 1.3 all is sent after that
 *
 * usage: java Peer client NAME PORT VERSION:WAY...   one connection after the other
 *        java Peer server NAME VERSION:WAY...        one to each of the ports that it prints
 */
public class Peer {
  static byte[] sent;
  static byte[] expected;

  public static void main(String[] args) throws Exception {
    sent = Files.readAllBytes(Path.of("sent"));
    expected = Files.readAllBytes(Path.of("other"));
    String name = args[1];
    SSLContext context = context(name);
    if (args[0].equals("client")) {
      int port = Integer.parseInt(args[2]);
      for (String what : Arrays.asList(args).subList(3, args.length))
        report(what, () -> connect(context, name, port, what));
      return;
    }
    for (String what : Arrays.asList(args).subList(2, args.length)) {
      ServerSocket listener = new ServerSocket(0, 1, InetAddress.getLoopbackAddress());
      System.out.println(what + " listens on " + listener.getLocalPort());
      new Thread(() -> report(what, () -> accept(context, listener, what))).start();
    }
  }

  interface Task {
    void run() throws Exception;
  }

  static void report(String what, Task task) {
    try {
      task.run();
      System.out.println(what + " is good");
    } catch (Exception | AssertionError err) {
      System.out.println(what + " failed: " + err);
      err.printStackTrace();
    }
  }

  static void connect(SSLContext context, String name, int port, String what) throws Exception {
    Socket plain = new Socket(InetAddress.getLoopbackAddress(), port);
    SSLSocket socket =
        (SSLSocket) context.getSocketFactory().createSocket(plain, name, port, !what.endsWith(":open"));
    SSLParameters parameters = socket.getSSLParameters();
    parameters.setEndpointIdentificationAlgorithm("HTTPS");
    parameters.setServerNames(List.of(new SNIHostName(name)));
    socket.setSSLParameters(parameters);
    talk(socket, plain, what);
  }

  static void accept(SSLContext context, ServerSocket listener, String what) throws Exception {
    Socket plain = listener.accept();
    listener.close();
    // The last argument is whether closing the one closes the other.
    SSLSocket socket = (SSLSocket) context.getSocketFactory().createSocket(plain, null, !what.endsWith(":open"));
    socket.setUseClientMode(false);
    talk(socket, plain, what);
  }

  static void talk(SSLSocket socket, Socket plain, String what) throws Exception {
    String version = what.substring(0, what.indexOf(':'));
    socket.setEnabledProtocols(new String[] {version});
    plain.setSoTimeout(20_000);
    socket.startHandshake();
    assertThat(socket.getSession().getProtocol().equals(version), "the version");
    InputStream in = socket.getInputStream();
    switch (what.substring(what.indexOf(':') + 1)) {
      case "close", "open" -> {
        FutureTask<Void> sending = inBackground(() -> socket.getOutputStream().write(sent));
        assertThat(Arrays.equals(in.readNBytes(expected.length), expected), "what was got");
        sending.get();
        socket.close();
        assertThat(plain.isClosed() != what.endsWith(":open"), "the TCP connection");
        if (!plain.isClosed()) awaitEnd(plain);
      }
      case "half" -> {
        socket.getOutputStream().write(sent);
        socket.shutdownOutput();
        assertThat(Arrays.equals(in.readAllBytes(), expected), "what was got");
        socket.close();
      }
      case "last" -> {
        // With TLS 1.2 it answers a close_notify with one, at once.
        boolean isFirst = version.equals("TLSv1.2");
        if (isFirst) socket.getOutputStream().write(sent);
        assertThat(Arrays.equals(in.readAllBytes(), expected), "what was got");
        if (!isFirst) socket.getOutputStream().write(sent);
        socket.close();
      }
      default -> throw new IllegalArgumentException(what);
    }
  }

  /** Nothing comes before that. It may be a reset, if the other side had something left to read. */
  static void awaitEnd(Socket plain) throws Exception {
    try (plain) {
      assertThat(plain.getInputStream().read() == -1, "the end of TCP");
    } catch (SocketException err) {
      assertThat(err.getMessage().equals("Connection reset"), err.getMessage());
    }
  }

  static void assertThat(boolean condition, String what) {
    if (!condition) throw new AssertionError(what);
  }

  static FutureTask<Void> inBackground(Task task) {
    FutureTask<Void> future = new FutureTask<>(() -> {
      task.run();
      return null;
    });
    new Thread(future).start();
    return future;
  }

  /** With the certificate NAME.pem and its key, and those of ca.pem trusted. */
  static SSLContext context(String name) throws Exception {
    KeyStore own = KeyStore.getInstance("PKCS12");
    own.load(null, null);
    String pem = Files.readString(Path.of(name + ".key")).replaceAll("-----.*?-----|\\s", "");
    own.setKeyEntry(
        "own",
        KeyFactory.getInstance("EC").generatePrivate(new PKCS8EncodedKeySpec(Base64.getDecoder().decode(pem))),
        new char[0],
        new Certificate[] {certificate(name + ".pem")});
    KeyManagerFactory keys = KeyManagerFactory.getInstance("PKIX");
    keys.init(own, new char[0]);

    KeyStore trusted = KeyStore.getInstance("PKCS12");
    trusted.load(null, null);
    trusted.setCertificateEntry("ca", certificate("ca.pem"));
    TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
    trust.init(trusted);

    SSLContext context = SSLContext.getInstance("TLS");
    context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);
    return context;
  }

  static Certificate certificate(String file) throws Exception {
    byte[] bytes = Files.readAllBytes(Path.of(file));
    return CertificateFactory.getInstance("X.509").generateCertificate(new ByteArrayInputStream(bytes));
  }
}
