# versitygw (Go, built from the module proxy): an S3 server over a folder, where an object is a file. Its conditional writes are
# atomic (If-None-Match, If-Match). The bucket S3_BUCKET is made at start. MinIO, which takes ten times as long to build:
# `up minio`.
: "${S3_PORT:=9000}" "${S3_BUCKET:=test}" "${VERSITYGW_VERSION:=v1.8.0}"
S3_KEY=poundlock S3_SECRET=poundlock-secret
versitygw_build() {
  local go; go=$("$ROOT/go") || die "s3: no Go 1.25 or newer found"
  GOTOOLCHAIN=local GOBIN=$CACHE/$VERSITYGW_VERSION GOFLAGS=-buildvcs=false "$go" install -ldflags '-s -w' "github.com/versity/versitygw/cmd/versitygw@$VERSITYGW_VERSION"
}
install() { need curl; once "$VERSITYGW_VERSION" versitygw_build; }
start() {
  alive versitygw || need_port "$S3_PORT" S3_PORT
  mkdir -p "$DATA/disk/$S3_BUCKET" "$DATA/sidecar"   # a folder of the disk is a bucket
  # the sidecar holds what other file systems keep in extended attributes
  spawn versitygw env ROOT_ACCESS_KEY=$S3_KEY ROOT_SECRET_KEY=$S3_SECRET "$CACHE/$VERSITYGW_VERSION/versitygw" --quiet --keep-alive \
    --port "127.0.0.1:$S3_PORT" posix --sidecar "$DATA/sidecar" "$DATA/disk"
}
# asked without a key it refuses, but answers
ready() { [ "$(curl -s -m 2 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$S3_PORT/$S3_BUCKET")" = 403 ]; }
env_lines() {
  echo "AWS_ENDPOINT_URL=http://127.0.0.1:$S3_PORT"; echo AWS_ALLOW_HTTP=true; echo AWS_REGION=us-east-1
  echo "AWS_ACCESS_KEY_ID=$S3_KEY"; echo "AWS_SECRET_ACCESS_KEY=$S3_SECRET"; echo "S3_BUCKET=$S3_BUCKET"; echo "S3_FOLDER=$DATA/disk/$S3_BUCKET"
  echo "S3_SERVER=$CACHE/$VERSITYGW_VERSION/versitygw"
}
