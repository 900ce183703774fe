output "name" {
  description = "Name of the bucket, known when it is encrypted and closed."
  value       = aws_s3_bucket.artifacts.id
  depends_on = [
    aws_s3_bucket_server_side_encryption_configuration.artifacts,
    aws_s3_bucket_public_access_block.artifacts, aws_s3_bucket_policy.artifacts,
  ]
}

output "arn" {
  description = "ARN of the bucket."
  value       = aws_s3_bucket.artifacts.arn
}
