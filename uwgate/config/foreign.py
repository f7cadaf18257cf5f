"""Names of uWSGI options that this version of uwgate does not act on, with their arity.

Names and arity are facts about uWSGI 2.0 (core and the usual plugins), needed so that a command
line made for uWSGI is cut into options and values in the same places. Nothing else about these
options is known or checked here.
"""

from __future__ import annotations

from uwgate.config.model import Kind, Option, State

_SERVER = "belongs to the application server; ignored."
_LATER = "known from uWSGI, without effect in this version."
_REFUSED = "would change what is served; this version of uwgate refuses it."
_COMMAND = "a command of the uWSGI binary; uwgate has no such command."

# Options of the application server: modules, workers, languages, caches, routes.
_SERVER_NONE = """
    autoload cache-no-expire cache-report-freed-items cache-use-last-modified
    carbon-name-resolve carbon-no-workers carbon-resolve-names carbon-use-metrics
    catch-exceptions cgi-mode cheaper-busyness-verbose close-on-exec close-on-exec2 command-mode
    daemons-honour-stdin disable-write-exception enable-metrics enable-threads
    gevent-early-monkey-patch gevent-monkey-patch gevent-wait-for-hub harakiri-no-arh
    harakiri-verbose ignore-script-name ignore-write-errors lazy lazy-apps logformat-strftime
    manage-script-name memory-report metric-dir-restore metrics-dir-restore metrics-no-cores
    nagios never-swap no-default-app no-harakiri-after-req-hook no-harakiri-arh no-server
    no-site no-threads-wait paste-logger pcre-jit perl-no-die-catch perl-no-plack
    persistent-ipcsem propagate-touch psgi-enable-psgix-io py-call-osafterfork
    py-call-uwsgi-fork-hooks python re-fork re-fork-as-root re-fork-post-jail reaper refork
    refork-as-root refork-post-jail reload-on-exception reload-os-env rsyslog-split-messages
    shutdown-sockets single-interpreter skip-atexit skip-atexit-teardown socket-write-timeout
    spooler-ordered spooler-quiet start_response-nodelay symcall-use-next ugreen use-abort vhost
    vhost-host webdav-guess-owner write-errors-exception-only wsgi-accept-buffer
    wsgi-accept-buffers wsgi-disable-file-wrapper wsgi-strict
"""
_SERVER_OPTIONAL = """
    check-cache exit ksm mule mule-msg-size need-app pyshell pyshell-oneshot
"""
_SERVER_REQUIRED = """
    touch-mules-reload touch-spoolers-reload
    add-cache-item add-header after-request-call after-request-hook alarm alarm-backlog
    alarm-cheap alarm-curl alarm-fd alarm-freq alarm-listen-queue alarm-log alarm-lq
    alarm-metric alarm-msg-size alarm-segfault alarm-speech allowed-modifiers async asyncio
    attach-control-daemon attach-daemon attach-daemon2 auto-weight backlog-alarm backtrace-depth
    binary-path binsh body-read-warning brutal-reload-on-fd buffer-size cache-expire-freq
    cache-store cache-store-sync call-as-emperor call-as-emperor1 call-as-emperor2
    call-as-emperor4 call-as-root call-as-user call-as-user-atexit call-as-vassal
    call-as-vassal1 call-as-vassal3 call-asap call-in-jail call-post-app call-post-jail
    call-pre-app call-pre-jail callable carbon carbon-freq carbon-hostname-dots carbon-id
    carbon-idle-avg carbon-max-retry carbon-retry-delay carbon-root carbon-timeout cgi
    cgi-allowed-ext cgi-async-max-attempts cgi-buffer-size cgi-close-stdin-on-eof
    cgi-dontkill-on-error cgi-from-docroot cgi-helper cgi-index cgi-loadlib cgi-map-helper
    cgi-path-info cgi-safe cgi-timeout cgi-unset chdir2 cheaper cheaper-algo
    cheaper-busyness-backlog-alert cheaper-busyness-backlog-multiplier
    cheaper-busyness-backlog-nonzero cheaper-busyness-backlog-step cheaper-busyness-max
    cheaper-busyness-min cheaper-busyness-multiplier cheaper-busyness-penalty cheaper-initial
    cheaper-overload cheaper-rss-limit-hard cheaper-rss-limit-soft cheaper-step
    chunked-input-limit chunked-input-timeout clock clojure-load coroae cron cron-harakiri
    cron-legion cron2 curl-cron del-header dlopen dumbloop-code dumbloop-function
    dumbloop-modifier1 early-envdir early-perl early-perl-exec early-psgi env envdir error-route
    error-route-host error-route-if error-route-if-not error-route-label error-route-qs
    error-route-referer error-route-remote-addr error-route-remote-user error-route-run
    error-route-status error-route-uri error-route-user-agent eval evil-reload-on-as
    evil-reload-on-rss exception-handler exec-as-emperor exec-as-vassal exec-post-app
    exec-pre-app farm fastcgi-modifier1 fastcgi-modifier2 fastcgi-nph-socket fastcgi-socket
    fiber file file-write final-route final-route-host final-route-if final-route-if-not
    final-route-label final-route-qs final-route-referer final-route-remote-addr
    final-route-remote-user final-route-run final-route-status final-route-uri
    final-route-user-agent forkbomb-delay ftok gccgo-args gccgo-load gemset gevent
    glusterfs-mount glusterfs-timeout go-args go-load greenlet gridfs gridfs-debug gridfs-mount
    harakiri-graceful-signal harakiri-graceful-timeout harakiri-queue-threshold heartbeat home
    hook-accepting hook-accepting-once hook-accepting1 hook-accepting1-once hook-as-emperor
    hook-as-mule hook-as-vassal hook-emperor-lost hook-emperor-reload hook-emperor-start
    hook-emperor-stop hook-master-start hook-post-app hook-post-fork hook-pre-app hook-touch
    http-socket http-socket-modifier1 http-socket-modifier2 http11-socket https-socket
    https-socket-modifier1 https-socket-modifier2 import ini-paste ini-paste-logged jvm-class
    jvm-classpath jvm-main-class jvm-opt jwsgi ldap ldap-schema ldap-schema-ldif libffi
    limit-post listen-queue-alarm load-file-in-cache load-file-in-cache-gzip lock-engine locks
    loop lq-alarm lua lua-gc-freq lua-load lua-shell luashell max-apps max-requests
    max-requests-delta max-vars max-worker-lifetime-delta mem-collector-freq metric metric-alarm
    metric-dir metric-threshold metrics-dir mode module mongrel2 mongrel2-ident mono-app
    mono-assembly mono-config mono-exec mono-gc-freq mono-index mono-key mono-version mount
    mount-as-emperor mount-as-vassal mule-harakiri mule-reload-mercy mules need-plugin
    need-plugins not-alarm-log not-log-alarm optimize paste pecan perl-arg perl-args
    perl-auto-reload perl-auto-reload-ignore perl-exec perl-exec-post-fork perl-local-lib
    perl-version php-allowed-docroot php-allowed-ext php-allowed-script php-app php-app-bypass
    php-app-qs php-config php-config-append php-docroot php-dump-config php-exec-after
    php-exec-before php-exec-begin php-exec-end php-fallback php-index php-ini php-ini-append
    php-sapi-name php-server-software php-set php-var ping ping-timeout plshell plshell-oneshot
    plugin plugin-dir plugins plugins-dir post-buffering post-buffering-bufsize
    post-pymodule-alias pp processes profiler protocol psgi pump puwsgi-socket py py-auto-reload
    py-auto-reload-ignore py-autoreload py-executable py-import py-program-name py-programname
    py-sharedarea py-sys-executable py-tracebacker pyargv pyhome pyimport pymodule-alias
    pypy-eval pypy-eval-post-fork pypy-exec pypy-exec-post-fork pypy-home pypy-ini-paste
    pypy-lib pypy-paste pypy-pp pypy-python-path pypy-pythonpath pypy-setup pypy-wsgi
    pypy-wsgi-file pyrun python-auto-reload python-autoreload python-import python-path
    python-raw python-worker-override pythonpath queue queue-blocksize queue-store
    queue-store-sync rack rados-mount rados-timeout rails raw-modifier1 raw-modifier2 raw-socket
    rb-gc-freq rb-lib rb-require rb-threads rbrequire rbshell rbshell-oneshot rbthreads rbtimer
    reload-on-as reload-on-exception-repr reload-on-exception-type reload-on-exception-value
    reload-on-fd rem-header remap-modifier require response-header-collect
    response-headers-limit response-route response-route-host response-route-if
    response-route-label response-route-qs response-route-referer response-route-remote-addr
    response-route-remote-user response-route-run response-route-status response-route-uri
    response-route-user-agent ring-app ring-load route route-host route-if route-if-not
    route-label route-qs route-referer route-remote-addr route-remote-user route-run route-uri
    route-user-agent rpc-max rrdtool rrdtool-freq rrdtool-lib rsyslog-packet-size ruby-gc-freq
    ruby-lib ruby-require ruby-threads rubyrequire rvm rvm-path scgi-modifier1 scgi-modifier2
    scgi-nph-socket scgi-socket segfault-alarm shared-import shared-py-import shared-pyimport
    shared-python-import shared-rb-require shared-rbrequire shared-require shared-ruby-require
    shared-rubyrequire sharedarea signal signal-bufsize signal-rbtimer signal-timer
    signals-bufsize smart-attach-daemon smart-attach-daemon2 socket-protocol spooler ssl-socket
    suwsgi-socket spooler-chdir spooler-external spooler-freq spooler-frequency spooler-harakiri
    spooler-import spooler-max-tasks spooler-processes spooler-py-import spooler-pyimport
    spooler-python-import sqlite sqlite3 stackless symcall symcall-post-fork
    symcall-register-rpc test thread-stack-size thread-stacksize threads threads-stack-size
    threads-stacksize timer tornado ugreen-stacksize unenv unique-cron unique-legion-cron
    v8-gc-freq v8-jsgi v8-load v8-module-path v8-preemptive venv virtualenv web3
    webdav-add-collection-prop webdav-add-collection-prop-comp webdav-add-collection-prop-href
    webdav-add-object-prop webdav-add-object-prop-comp webdav-add-object-prop-href
    webdav-add-option webdav-add-prop webdav-add-prop-comp webdav-add-prop-href
    webdav-add-rtype-collection-prop webdav-add-rtype-object-prop webdav-add-rtype-prop
    webdav-class-directory webdav-css webdav-div webdav-javascript webdav-js webdav-lock-cache
    webdav-mount webdav-principal-base webdav-skip-prop websocket-max-size websocket-ping-freq
    websocket-pong-tolerance websockets-max-size websockets-ping-freq websockets-pong-tolerance
    worker-exec worker-exec2 worker-mount workers write-errors-tolerance wsgi wsgi-env-behavior
    wsgi-env-behaviour wsgi-file wsgi-lite xslt-content-type xslt-docroot xslt-ext
    xslt-stylesheet xslt-var zeromq zeromq-socket zmq zmq-socket
"""

# Options about gateways, process and sockets that this version leaves out.
_LATER_NONE = """
    abstract-socket drop-after-apps drop-after-init early-emperor emperor-graceful-shutdown
    emperor-magic-exec emperor-no-blacklist emperor-nofollow emperor-tyrant
    emperor-tyrant-nofollow end-blacklist end-whitelist force-gateway forkptyrouter-quiet
    honour-stdin jailed log-4xx log-5xx log-format-strftime log-master-req-stream
    log-master-stream log-micros log-zero master-as-root no-fd-passing no-initgroups
    rawrouter-cheap rawrouter-xclient setns-preopen so-send-timeout so-write-timeout
    socket-send-timeout ssl-enable-compression sslrouter-cheap sslrouter-sni stats-no-cores
    stats-no-metrics tcp-fast-open-client tcp-fastopen-client threaded-logger
"""
_LATER_OPTIONAL = """
    log-date log-prefix log-syslog logdate rawrouter-use-cache rawrouter-use-socket snmp
    sslrouter-use-cache sslrouter-use-socket
"""
_LATER_REQUIRED = """
    blacklist cgroup cgroup-dir-mode cgroup-opt check-interval check-mount check-mountpoint
    cpu-affinity declare-option declare-option2 emperor emperor-broodlord emperor-cap
    emperor-curse-tolerance emperor-extra-ext emperor-extra-extension emperor-freq
    emperor-max-throttle emperor-on-demand-dir emperor-on-demand-directory
    emperor-on-demand-exec emperor-on-demand-ext emperor-on-demand-extension emperor-pidfile
    emperor-procname emperor-proxy-socket emperor-required-heartbeat emperor-stats
    emperor-stats-server emperor-throttle emperor-use-clone emperor-wrapper
    emperor-wrapper-fallback emperor-wrapper-override exec-as-root exec-as-user
    exec-as-user-atexit exec-asap exec-in-jail exec-post-jail exec-pre-jail fallback-config
    flock flock-wait flock-wait2 flock2 force-cwd forkpty-router-cols forkpty-router-command
    forkpty-router-rows forkptyrouter-cheap forkptyrouter-cols forkptyrouter-command
    forkptyrouter-events forkptyrouter-fallback forkptyrouter-harakiri forkptyrouter-processes
    forkptyrouter-rows forkptyrouter-ss forkptyrouter-stats forkptyrouter-stats-server
    forkptyrouter-timeout forkptyrouter-workers forkptyrouter-zerg fs-brutal-reload fs-reload
    fs-signal hook-as-gateway hook-as-root hook-as-user hook-as-user-atexit hook-asap
    hook-in-jail hook-post-jail hook-pre-jail immediate-gid immediate-uid inject-after
    inject-before legion legion-attach-daemon legion-cron legion-curl-cron legion-death
    legion-death-on-lord-error legion-freq legion-join legion-lord legion-mcast legion-node
    legion-node-joined legion-node-left legion-quorum legion-scroll legion-scroll-max-size
    legion-scrolls-max-size legion-setup legion-sign legion-skew-tolerance
    legion-smart-attach-daemon legion-smart-attach-daemon2 legion-tolerance legion-unlord
    limit-as limit-nproc log-alarm log-big log-drain log-encoder log-filter log-ioerror
    log-master-bufsize log-req-encoder log-req-route log-route log-sendfile log-slow log-socket
    logger logger-req map-socket max-fd mount-as-root mount-asap mount-check mount-in-jail
    mount-post-jail mount-pre-jail mountpoint-check multicast namespace namespace-keep-mount
    namespace-net ns ns-net pivot-root pivot_root prio rawrouter-buffer-size rawrouter-events
    rawrouter-fallback rawrouter-gracetime rawrouter-harakiri rawrouter-max-retries
    rawrouter-processes rawrouter-quiet rawrouter-ss rawrouter-stats rawrouter-stats-server
    rawrouter-subscription-server rawrouter-subscription-slot rawrouter-timeout rawrouter-to
    rawrouter-use-base rawrouter-use-code-string rawrouter-use-pattern rawrouter-workers
    rawrouter-zerg req-logger resolve setns setns-skip setns-socket setns-socket-skip
    snmp-community ssl-enable-sslv3-ciphers sslrouter-buffer-size sslrouter-events
    sslrouter-fallback sslrouter-gracetime sslrouter-harakiri sslrouter-max-retries
    sslrouter-processes sslrouter-quiet sslrouter-session-context sslrouter-ss sslrouter-stats
    sslrouter-stats-server sslrouter-subscription-server sslrouter-timeout sslrouter-to
    sslrouter-use-base sslrouter-use-code-string sslrouter-use-pattern sslrouter-workers
    sslrouter-zerg stats-push stats-pusher-default-freq stats-pushers-default-freq tuntap-device
    tuntap-device-rule tuntap-router-firewall-in tuntap-router-firewall-out tuntap-router-route
    tuntap-router-stats tuntap-use-credentials udp umount-as-emperor umount-as-root
    umount-as-vassal umount-asap umount-in-jail umount-post-jail umount-pre-jail unshare
    unshare2 upload-progress vassal-cap vassal-set vassal-sos vassal-sos-backlog vassals-cap
    vassals-include vassals-include-before vassals-inherit vassals-inherit-before vassals-set
    vassals-start-hook vassals-stop-hook wait-for-dir wait-for-file wait-for-fs
    wait-for-fs-timeout wait-for-iface wait-for-iface-timeout wait-for-interface
    wait-for-interface-timeout wait-for-mountpoint wait-for-socket wait-for-socket-timeout
    wait-iface wait-iface-timeout wait-interface wait-interface-timeout whitelist
"""

# Options that open or choose something else to serve.
_ERROR_OPTIONAL = """
    fastrouter-use-cache http-use-cache
"""
_ERROR_REQUIRED = """
    forkpty-router forkptyrouter forkptyu-router forkptyurouter rawrouter sslrouter sslrouter2
    tuntap-router
"""

# Options that make the uWSGI binary do something else than serve.
_COMMAND_NONE = """
    alarm-list alarms-list cflags cheaper-algo-list cheaper-algos-list cheaper-list clock-list
    clocks-list config-py dot-h dump-options imperial-monitor-list imperial-monitors-list
    logger-list loggers-list loop-list loops-list plugin-list plugins-list python-version
    router-list routers-list
"""
_COMMAND_REQUIRED = """
    binary-append-data build-plugin connect-and-read extract legion-scroll-list print-sym
    print-symbol privileged-binary-patch privileged-binary-patch-arg unprivileged-binary-patch
    unprivileged-binary-patch-arg
"""


def _rows(names: str, kind: Kind, state: State, sentence: str) -> list[Option]:
    topic = "server" if state is State.SERVER else "later"
    return [
        Option(name, kind, topic, sentence, state=state, repeatable=True) for name in names.split()
    ]


FOREIGN: tuple[Option, ...] = (
    *_rows(_SERVER_NONE, Kind.FLAG, State.SERVER, _SERVER),
    *_rows(_SERVER_OPTIONAL, Kind.OPTIONAL_STRING, State.SERVER, _SERVER),
    *_rows(_SERVER_REQUIRED, Kind.STRING, State.SERVER, _SERVER),
    *_rows(_LATER_NONE, Kind.FLAG, State.LATER, _LATER),
    *_rows(_LATER_OPTIONAL, Kind.OPTIONAL_STRING, State.LATER, _LATER),
    *_rows(_LATER_REQUIRED, Kind.STRING, State.LATER, _LATER),
    *_rows(_ERROR_OPTIONAL, Kind.OPTIONAL_STRING, State.REFUSED, _REFUSED),
    *_rows(_ERROR_REQUIRED, Kind.STRING, State.REFUSED, _REFUSED),
    *_rows(_COMMAND_NONE, Kind.FLAG, State.COMMAND, _COMMAND),
    *_rows(_COMMAND_REQUIRED, Kind.STRING, State.COMMAND, _COMMAND),
)
"""One row an option name; aliases of uWSGI are rows of their own here."""
