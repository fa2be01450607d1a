# A private bucket with what runs on the parent. An object's name is its checksum, which the instance
# knows from its user data and verifies.

resource "aws_s3_bucket" "artifacts" {
  bucket_prefix = "${var.name}-artifacts-"
  force_destroy = true

  #checkov:skip=CKV_AWS_18:one instance reads it once; its log would be larger than the bucket
  #checkov:skip=CKV_AWS_144:all of it is made anew from the files here
  #checkov:skip=CKV_AWS_145:nothing in it is secret, and each file is verified by its checksum; S3 encrypts it by its own keys
  #checkov:skip=CKV2_AWS_61:files end with the configuration that names them
  #checkov:skip=CKV2_AWS_62:nothing waits for changes
}

resource "aws_s3_bucket_versioning" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_public_access_block" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_policy" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "OnlyByTls"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [aws_s3_bucket.artifacts.arn, "${aws_s3_bucket.artifacts.arn}/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })

  depends_on = [aws_s3_bucket_public_access_block.artifacts]
}

resource "aws_s3_object" "artifact" {
  for_each = local.checksums

  bucket  = aws_s3_bucket.artifacts.id
  key     = each.value
  source  = lookup(local.sources, each.key, null)
  content = lookup(local.rendered, each.key, null)

  #checkov:skip=CKV_AWS_186:as the bucket
}
