# MinIO (Go, built from the module proxy): another S3 server, to try against by hand in place of s3. The bucket S3_BUCKET is made
# at start. The build takes half an hour on a busy machine and 1 GiB of Go's module cache, once per SERVICES_HOME.
: "${S3_PORT:=9000}" "${S3_BUCKET:=test}" "${MINIO_VERSION:=v0.0.0-20260212201848-7aac2a2c5b7c}"
S3_KEY=minioadmin S3_SECRET=minioadmin
minio_build() { GOBIN=$CACHE/$MINIO_VERSION GOFLAGS=-buildvcs=false go install -ldflags '-s -w' "github.com/minio/minio@$MINIO_VERSION"; }
install() { need go 'Go 1.24 or newer'; need curl; once "$MINIO_VERSION" minio_build; }
start() {
  alive minio || need_port "$S3_PORT" S3_PORT
  mkdir -p "$DATA/disk/$S3_BUCKET"   # a folder of the disk is a bucket
  spawn minio env MINIO_ROOT_USER=$S3_KEY MINIO_ROOT_PASSWORD=$S3_SECRET MINIO_BROWSER=off MINIO_UPDATE=off HOME="$DATA" \
    "$CACHE/$MINIO_VERSION/minio" server --address "127.0.0.1:$S3_PORT" "$DATA/disk"
}
ready() { curl -fsS -m 2 -o /dev/null "http://127.0.0.1:$S3_PORT/minio/health/ready"; }
env_lines() {
  echo "AWS_ENDPOINT_URL=http://127.0.0.1:$S3_PORT"; echo AWS_ALLOW_HTTP=true; echo AWS_REGION=us-east-1
  echo "AWS_ACCESS_KEY_ID=$S3_KEY"; echo "AWS_SECRET_ACCESS_KEY=$S3_SECRET"; echo "S3_BUCKET=$S3_BUCKET"
}
