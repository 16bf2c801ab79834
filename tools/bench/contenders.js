'use strict';

// What is compared: each is a process that takes TLS off (or puts it on)
// between a TCP port and an endpoint, which may have TLS of its own.

const fs = require('node:fs');
const path = require('node:path');
const { execFileSync } = require('node:child_process');

const repo = path.resolve(__dirname, '../..');
const patched = path.join(repo, 'out/node');
const stock = path.join(repo, 'out/node-stock');
const floor = path.join(process.env.BENCH_NATIVE, 'floor');
const floorTun = path.join(process.env.BENCH_NATIVE, 'floor-tun');
const load = path.join(process.env.BENCH_NATIVE, 'load');

// Given `dir` (its own folder), `port`, `upstream` ("tcp:PORT", "tls:PORT",
// "unix:PATH", "fifo:FOLDER", "tun:NAME" or "udp:PORT"), `cert`, `key`, `connections` and
// `node` (flags), each returns a command. `version` is a command too, whose output has the version
// in it. The others only know TCP, and some of them TLS. Of that the load generator
// speaks but one version and cipher suite, as server and as client.
const files = ({ cert, key }) => ['--cert', cert, '--key', key];
const host = ({ upstream }) => upstream.replace(/^(tcp|tls):/, '127.0.0.1:');
// How many connections a peer has to allow: a tenth more than are measured.
const most = ({ connections }) => Math.max(4096, Math.ceil(connections * 1.1) + 100);
const isTLS = ({ upstream }) => upstream.startsWith('tls:');

function node(binary, pump, ...flags) {
  return {
    isNode: true,
    version: [binary, '--version'],
    command: (to) => [
      binary, ...to.node ?? [], path.join(__dirname, 'forwarder.js'), '--pump', pump, '--port', to.port,
      '--upstream', to.upstream, ...files(to), ...to.delay ? ['--delay'] : [], ...flags,
    ],
  };
}

function configured(name, text, command, version) {
  return {
    peer: true,
    version,
    command(to) {
      const file = path.join(to.dir, name);
      fs.writeFileSync(file, `${text(to).trim()}\n`);
      return command(file, to.dir);
    },
  };
}

const nginx = (processes) => configured('nginx.conf', (to) => `
    load_module /usr/lib/nginx/modules/ngx_stream_module.so;
    daemon off;
    ${processes > 1 ? `worker_processes ${processes}; ${process.getuid() === 0 ? 'user root;' : ''}` : 'master_process off;'}
    pid ${to.dir}/nginx.pid;
    events { worker_connections ${2 * most(to)}; }
    stream {
      server {
        listen 127.0.0.1:${to.port} ssl backlog=1024;
        ssl_certificate ${to.cert};
        ssl_certificate_key ${to.key};
        proxy_pass ${host(to)};
        proxy_ssl ${isTLS(to) ? 'on' : 'off'};
      }
    }`, (file, dir) => ['nginx', '-p', dir, '-c', file, '-e', 'stderr'], ['nginx', '-v']);

const haproxy = (threads) => configured('haproxy.cfg', (to) => `
    global
      nbthread ${threads}
      maxconn ${most(to)}
    defaults
      mode tcp
      timeout connect 10s
      timeout client 1m
      timeout server 1m
    frontend front
      bind 127.0.0.1:${to.port} ssl crt ${to.dir}/both.pem
      default_backend back
    backend back
      server one ${host(to)} ${isTLS(to) ? 'ssl verify none' : ''}
    `, (file) => ['haproxy', '-db', '-f', file], ['haproxy', '-v']);

const contenders = {
  'floor': {
    version: ['openssl', 'version'],
    command: (to) => [
      to.upstream.startsWith('tun:') ? floorTun : floor, '--port', to.port, '--upstream', to.upstream, ...files(to),
    ],
  },
  'splice': node(patched, 'splice'),
  'splice-fd': node(patched, 'splice-fd'),
  'none': node(patched, 'none'),
  'pipe': node(stock, 'pipe'),
  'pipe-fs': node(stock, 'pipe-fs'),
  'pipeline': node(stock, 'pipeline'),
  // With a main thread that has nothing to do, or computes.
  'workers-1': node(patched, 'splice', '--workers', '1'),
  'workers-2': node(patched, 'splice', '--workers', '2'),
  'workers-4': node(patched, 'splice', '--workers', '4'),
  'pipe-workers-2': node(stock, 'pipe', '--workers', '2'),
  'worker-computing': node(patched, 'splice', '--workers', '1', '--compute'),
  'splice-computing': node(patched, 'splice', '--compute'),
  // Of the idle process beside it, the event loop counts.
  'beside-workers-2': node(patched, 'splice', '--workers', '2', '--beside'),
  'nginx': nginx(1),
  'nginx-2': nginx(2),
  'haproxy': haproxy(1),
  'haproxy-2': haproxy(2),
  'hitch': configured('hitch.conf', (to) => `
    frontend = "[127.0.0.1]:${to.port}"
    backend = "[127.0.0.1]:${host(to).split(':')[1]}"
    pem-file = "${to.dir}/both.pem"
    workers = 1
    backlog = 1024
    ${process.getuid() === 0 ? 'user = "nobody"' : ''}
    `, (file) => ['hitch', '--config', file], ['hitch', '--version']),
  'socat': {
    peer: true,
    version: ['socat', '-V'],
    command: (to) => [
      'socat', '-b', '65536',
      `OPENSSL-LISTEN:${to.port},bind=127.0.0.1,reuseaddr,fork,verify=0,cert=${to.cert},key=${to.key}`,
      `TCP:${host(to)}`,
    ],
  },
  'stunnel': configured('stunnel.conf', (to) => `
    foreground = yes
    pid =
    socket = l:TCP_NODELAY=1
    socket = r:TCP_NODELAY=1
    [one]
    accept = 127.0.0.1:${to.port}
    connect = ${host(to)}
    cert = ${to.cert}
    key = ${to.key}
    `, (file) => ['stunnel', file], ['stunnel', '-version']),
};

// Splices of another build take part, as `before`.
function addBefore(file) {
  contenders.before = node(file, 'splice');
}

// Some print it to the standard error.
function version(name) {
  const text = execFileSync('sh', ['-c', '"$@" 2>&1', '-', ...contenders[name].version], { encoding: 'utf8' });
  return /\d+\.\d+(\.\d+)*/.exec(text)[0];
}

// It gets a TUN device, which is up before it starts, and has no address: so
// nobody but the load generator sends anything to it. There is a queue for each
// connection.
function withDevice(name, queues, command) {
  const script = 'ip link set "$TUN_NAME" addrgenmode none; ip link set "$TUN_NAME" mtu 1400 up; exec "$@"';
  const exec = [path.join(repo, 'out/tun-exec'), '--name', name, '--queues', queues,
                'sh', '-ec', script, '-', ...command];
  // The queues have the numbers from 3 on, of which 4 is that of the channel to a program on Node.
  const moveChannel = 'exec 300>&"$NODE_CHANNEL_FD"; NODE_CHANNEL_FD=300 exec "$@"';
  return queues > 1 ? ['bash', '-ec', moveChannel, '-', ...exec] : exec;
}

module.exports = { addBefore, contenders, load, repo, version, withDevice };
