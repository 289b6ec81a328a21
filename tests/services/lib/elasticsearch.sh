# Elasticsearch, the real server (one node, no security), from its own jars in Maven's registry: `up elasticsearch`.
# There: indices, mappings, _bulk, _doc, _update with a doc, _search with aggregations, index and component templates,
# aliases, scroll, PIT, _cat, _cluster. Not there, for their modules are not in that registry: scripts (painless), ingest
# processors, _delete_by_query, _update_by_query, _reindex, data streams, ILM, security and TLS.
: "${ELASTICSEARCH_VERSION:=9.5.2}" "${ELASTICSEARCH_PORT:=9200}" "${ELASTICSEARCH_TRANSPORT_PORT:=9300}" "${ELASTICSEARCH_HEAP:=512m}"
# quick to start; for a benchmark: ELASTICSEARCH_JVM="-XX:+UseG1GC" and ELASTICSEARCH_HEAP=2g
: "${ELASTICSEARCH_JVM:=-XX:+UseSerialGC -XX:TieredStopAtLevel=1}"
ES_HOME=$CACHE/$ELASTICSEARCH_VERSION

es_jdk() { # a JDK of 21 or newer, with javac
  local d v
  for d in "${ELASTICSEARCH_JAVA_HOME:-}" "${JAVA_HOME:-}" /usr/lib/jvm/*/; do
    [ -n "$d" ] && [ -x "$d/bin/javac" ] || continue
    v=$("$d/bin/javac" -version 2>&1 | sed -n 's/^javac \([0-9]*\).*/\1/p')
    if [ "${v:-0}" -ge 21 ]; then echo "${d%/}"; return; fi
  done
  die "elasticsearch: no JDK 21 or newer found; set ELASTICSEARCH_JAVA_HOME"
}
es_module() { # es_module NAME CLASS
  printf '%s=%s\n' name "$1" description "$1" version "$ELASTICSEARCH_VERSION" elasticsearch.version "$ELASTICSEARCH_VERSION" \
    java.version 21 classname "$2" >"$ES_HOME/modules/$1/plugin-descriptor.properties"
}
es_fetch() {
  local tmp jdk src=$ROOT/lib/elasticsearch; tmp=$(mktemp -d); jdk=$(es_jdk)
  cat >"$tmp/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>local</groupId><artifactId>elasticsearch-dist</artifactId><version>1</version><packaging>pom</packaging>
<dependencies>
<dependency><groupId>org.elasticsearch</groupId><artifactId>elasticsearch</artifactId><version>$ELASTICSEARCH_VERSION</version></dependency>
<dependency><groupId>org.elasticsearch.plugin</groupId><artifactId>transport-netty4</artifactId><version>$ELASTICSEARCH_VERSION</version></dependency>
</dependencies></project>
POM
  rm -rf "$ES_HOME"; mkdir -p "$ES_HOME"/{lib,native,modules/transport-netty4} "$tmp/node" "$tmp/root"
  mvn -B -ntp -f "$tmp/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$ES_HOME/lib" || return
  # a module's own jars may not be on the server's class path too
  mv "$ES_HOME"/lib/{netty-*,transport-netty4-*,elasticsearch-ssl-config-*}.jar "$ES_HOME/modules/transport-netty4/" || return
  "$jdk/bin/javac" -cp "$ES_HOME/lib/*" -d "$tmp/node" "$src/EsNode.java" && "$jdk/bin/jar" cf "$ES_HOME/lib/es-node.jar" -C "$tmp/node" . || return
  if [ "${ELASTICSEARCH_VERSION%%.*}" -ge 9 ]; then   # 8 has another interface, and works without an answer to GET /
    "$jdk/bin/javac" -cp "$ES_HOME/lib/*" -d "$tmp/root" "$src/Root.java" && "$jdk/bin/jar" cf "$tmp/root.jar" -C "$tmp/root" . || return
    mkdir -p "$ES_HOME/modules/rest-root" && mv "$tmp/root.jar" "$ES_HOME/modules/rest-root/" || return
    es_module rest-root local.root.Root
  fi
  es_module transport-netty4 org.elasticsearch.transport.netty4.Netty4Plugin
  rm -rf "$tmp"
}
install() { need mvn; need curl; once "$ELASTICSEARCH_VERSION" es_fetch; }

start() {
  local jdk zstd; jdk=$(es_jdk)
  alive node || { need_port "$ELASTICSEARCH_PORT" ELASTICSEARCH_PORT; need_port "$ELASTICSEARCH_TRANSPORT_PORT" ELASTICSEARCH_TRANSPORT_PORT; }
  mkdir -p "$DATA"/{config,data,tmp}
  # the disk watermarks are off: on a nearly full disk the server would make every index read-only
  cat >"$DATA/config/elasticsearch.yml" <<CONF
cluster.name: services
node.name: node-1
discovery.type: single-node
http.host: 127.0.0.1
http.port: $ELASTICSEARCH_PORT
transport.host: 127.0.0.1
transport.port: $ELASTICSEARCH_TRANSPORT_PORT
path.data: $DATA/data
path.logs: $LOGS
cluster.routing.allocation.disk.threshold_enabled: false
CONF
  printf '%b\n' "${ELASTICSEARCH_CONFIG:-}" >>"$DATA/config/elasticsearch.yml"
  cat >"$DATA/config/log4j2.properties" <<'LOG'
status=error
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{ISO8601} %-5p %c{1.}: %m%n
rootLogger.level=info
rootLogger.appenderRef.out.ref=out
LOG
  # the codec best_compression wants the system's libzstd (Debian: libzstd1)
  zstd=$(ls /usr/lib/*/libzstd.so.1 /usr/lib64/libzstd.so.1 2>/dev/null | head -n 1 || true)
  if [ -n "$zstd" ]; then ln -sfn "$zstd" "$ES_HOME/native/libzstd.so"; fi
  echo "$ELASTICSEARCH_PORT" >"$RUN/port"
  spawn node "$jdk/bin/java" "-Xms$ELASTICSEARCH_HEAP" "-Xmx$ELASTICSEARCH_HEAP" $ELASTICSEARCH_JVM -Djava.awt.headless=true \
    --enable-native-access=ALL-UNNAMED --sun-misc-unsafe-memory-access=allow -Dlog4j2.disable.jmx=true \
    -Dlog4j.configurationFile="$DATA/config/log4j2.properties" -Djava.io.tmpdir="$DATA/tmp" -Des.nativelibs.path="$ES_HOME/native" -Dorg.elasticsearch.nativeaccess.enableVectorLibrary=false \
    -Des.path.home="$ES_HOME" -Des.path.conf="$DATA/config" -cp "$ES_HOME/lib/*" EsNode
}
# red until the indices on disk are recovered (the server then answers 408)
ready() { curl -fsS -m 2 "http://127.0.0.1:$(cat "$RUN/port")/_cluster/health?wait_for_status=yellow&timeout=1s"; }
env_lines() { echo "ELASTICSEARCH_URL=http://127.0.0.1:$(cat "$RUN/port")"; }
